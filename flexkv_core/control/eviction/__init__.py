"""Which leaf of a tier is evicted first when room is needed."""
