"""Contracts as pytest classes, and doubles that keep them. Needs pytest."""
