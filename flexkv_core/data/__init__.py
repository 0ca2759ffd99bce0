"""The data plane: moves bytes between an engine's pages, host memory and the tiers below."""
