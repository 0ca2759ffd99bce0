"""The SSD tier: slab files that describe themselves."""
