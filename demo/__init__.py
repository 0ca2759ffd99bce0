"""`make demo`: FlexKV behind real vLLM on this machine, shown with measured times."""
