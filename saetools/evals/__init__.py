"""Evaluations: one file each, all on held-out documents."""
