"""Where blocks are kept: the host region, and the contract of the tiers below it."""
