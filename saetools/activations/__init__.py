"""Activations: tokens -> rows, on disk or live, calibrated and shuffled."""
