"""Which leaf of a tier leaves first when room is needed."""
