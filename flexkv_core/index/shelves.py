"""The tiers as the control plane sees them, and the shelves that the index keeps for them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flexkv_core.errors import ConfigError
from flexkv_core.eviction import EvictionPolicy, create_policy
from flexkv_core.index.node import Residency, Shelf
from flexkv_core.index.slot_pool import SlotPool

__all__ = ["TierSpec", "make_shelves"]


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One tier: its name in plans, its size, and who leaves it first."""

    name: str
    capacity_blocks: int
    eviction_policy: str = "lru"
    addressed_by: Literal["slot", "key"] = "slot"
    """How plans name its blocks. Where it is by key, slots only count room."""

    def __post_init__(self) -> None:
        if self.capacity_blocks < 1:
            msg = (
                f"tier {self.name!r} has room for {self.capacity_blocks} blocks, expected at "
                "least 1: give it more memory, or leave it out"
            )
            raise ConfigError(msg)


def make_shelves(tiers: Iterable[TierSpec], num_groups: int) -> list[Shelf]:
    """Return an empty shelf for each cache group of each tier.

    Raises:
        ConfigError: An eviction policy is unknown.
    """
    shelves: list[Shelf] = []
    for tier in tiers:
        pool = SlotPool(tier.capacity_blocks)
        policy: EvictionPolicy[Residency] = create_policy(
            tier.eviction_policy, tier.capacity_blocks
        )
        for group in range(num_groups):
            shelf = Shelf(len(shelves), tier.name, group, tier.addressed_by, pool, policy)
            shelves.append(shelf)
    return shelves
