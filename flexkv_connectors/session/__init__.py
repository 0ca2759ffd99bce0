"""For engines that give us their KV pages: we own the host tier and every tier below it."""
