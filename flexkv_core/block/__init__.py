"""What a block is: its key, the namespace it is a block of, and how its bytes lie. Pure."""
