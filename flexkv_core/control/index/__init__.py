"""Which blocks are in which tier: one radix tree of runs of keys."""
