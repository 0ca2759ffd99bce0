"""Where blocks lie: the host region, and the contract of tiers beneath it."""
