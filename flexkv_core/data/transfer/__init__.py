"""Lanes: they move bytes between two places."""
