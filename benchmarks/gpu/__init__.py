"""The measurement plan for one GPU."""
