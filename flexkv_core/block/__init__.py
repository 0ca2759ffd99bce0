"""What a block is: its key, its namespace, and the layout of its bytes. Pure."""
