"""Storage below the host memory of an engine that has a host tier of its own."""
