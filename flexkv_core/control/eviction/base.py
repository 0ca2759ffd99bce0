"""The contract of an eviction policy.

`flexkv_core.testing.policy_contract` is the same contract as a test class.
"""

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

__all__ = ["Evictable", "EvictionPolicy"]


class Evictable(Protocol):
    """What a policy may know of an item: a run of blocks of one tier, compared by identity.

    The index writes `last_use` and `num_uses` at every use without calling the policy, so a use
    costs the same under every policy. An item whose last child leaves inherits the child's uses.
    """

    last_use: int
    """The index's clock at the last use, writing included; it never falls."""

    num_uses: int
    """Uses since the item was written; the policy may lower it."""

    @property
    def first_key(self) -> bytes:
        """Key of the first block; the same when the same blocks come back."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the run; changes as the run grows and shrinks at its tail."""


Item = TypeVar("Item", bound=Evictable)


class EvictionPolicy(ABC, Generic[Item]):
    """Orders the leaves of one tier, worst first. It never frees anything itself.

    A leaf is a run of blocks, not a block: costs are per run. Every evictable item is ordered, and
    perhaps some that no longer are evictable (pinned, being written, grown a child): if `take`
    returns one of those, the caller ignores it and adds it again once it is evictable.

    Thread: scheduler thread only. Cost: every method is O(log items) amortised.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks

    @abstractmethod
    def add(self, item: Item) -> None:
        """Order `item`, which may now be evicted. If already ordered, it keeps its place."""

    @abstractmethod
    def take(self) -> Item | None:
        """Remove and return the item to evict next, or None if none is ordered."""

    @abstractmethod
    def restore(self, item: Item) -> None:
        """Undo the last `take`, which returned `item`: it is the next to be taken again."""

    @abstractmethod
    def record_eviction(self, item: Item, num_blocks: int) -> None:
        """Note that the last `num_blocks` blocks of `item`, which was just taken, are evicted."""

    @abstractmethod
    def discard(self, item: Item) -> None:
        """Forget `item`, which is gone. An unknown item is ignored."""

    @abstractmethod
    def __contains__(self, item: object) -> bool:
        """Return whether `item` is ordered."""
