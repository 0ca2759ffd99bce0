"""The control plane: decides what moves. No tensor, no thread, no clock."""
