"""Lanes: what moves bytes between two places."""
