"""Kernels: one folder per operation, a plain torch reference beside each fast path."""
