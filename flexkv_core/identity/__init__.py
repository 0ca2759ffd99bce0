"""What KV is the KV of: files, hashed whole, as the engine read them."""
