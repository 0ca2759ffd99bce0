"""Which model the KV belongs to: its files, hashed whole, as the engine read them."""
