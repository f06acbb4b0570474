"""Layouts on disk: what is a valid dictionary, checkpoint or store."""
