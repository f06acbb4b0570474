"""Dictionaries: the trained objects. One file per kind."""
