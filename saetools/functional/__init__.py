"""Formulas: one function, one formula, one source."""
