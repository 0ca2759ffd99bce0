"""S3-FIFO: most runs are never used again, so let them leave through a short queue."""

from collections import OrderedDict

from typing_extensions import override

from flexkv_core.eviction.base import EvictionPolicy, Item

__all__ = ["S3FifoPolicy"]


class S3FifoPolicy(EvictionPolicy[Item]):
    """Two FIFO queues, and the keys of what left the first one lately.

    New runs enter the small queue. One that was used twice by the time it reaches the head moves
    to the main queue; any other is evicted and its key remembered, and if it comes back soon it
    goes straight to the main queue. There a run in use goes round again, once for each use.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1.
    Sizes are counted in blocks. Only leaves are queued, so a run that becomes a leaf again keeps
    its queue and loses its place in it.
    """

    _SMALL_SHARE = 0.1
    _MIN_USES_TO_STAY = 2
    _MAX_USES = 3

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._small: OrderedDict[Item, int] = OrderedDict()
        self._main: OrderedDict[Item, None] = OrderedDict()
        self._proven: set[Item] = set()
        """Items of the main queue, including those that are not ordered at the moment."""

        self._ghosts: OrderedDict[bytes, int] = OrderedDict()
        self._num_small_blocks = 0
        self._num_ghost_blocks = 0

    @override
    def add(self, item: Item) -> None:
        if item in self._main:
            return
        num_ghost_blocks = self._ghosts.pop(item.first_key, 0)
        if num_ghost_blocks:
            self._num_ghost_blocks -= num_ghost_blocks
            self._proven.add(item)
        if item in self._proven:
            self._leave_small(item)
            self._main[item] = None
        else:
            self._enter_small(item)

    @override
    def take(self) -> Item | None:
        while self._small or self._main:
            if self._small and (self._small_is_full() or not self._main):
                item = next(iter(self._small))
                self._leave_small(item)
                if item.num_uses < self._MIN_USES_TO_STAY:
                    return item
                item.num_uses = 0
                self._proven.add(item)
            else:
                item, _ = self._main.popitem(last=False)
                if not item.num_uses:
                    return item
                item.num_uses = min(item.num_uses, self._MAX_USES) - 1
            self._main[item] = None
        return None

    @override
    def restore(self, item: Item) -> None:
        if item in self._proven:
            self._main[item] = None
            self._main.move_to_end(item, last=False)
        else:
            self._enter_small(item)
            self._small.move_to_end(item, last=False)

    @override
    def record_eviction(self, item: Item, num_blocks: int) -> None:
        if item in self._proven:
            return
        key = item.first_key
        self._ghosts[key] = self._ghosts.pop(key, 0) + num_blocks
        self._num_ghost_blocks += num_blocks
        while self._num_ghost_blocks > self._capacity_blocks:
            _, num_forgotten_blocks = self._ghosts.popitem(last=False)
            self._num_ghost_blocks -= num_forgotten_blocks

    @override
    def discard(self, item: Item) -> None:
        self._leave_small(item)
        self._main.pop(item, None)
        self._proven.discard(item)

    @override
    def __contains__(self, item: object) -> bool:
        return item in self._small or item in self._main

    def _small_is_full(self) -> bool:
        """Return whether the small queue has more than its share of the tier."""
        return self._num_small_blocks > self._capacity_blocks * self._SMALL_SHARE

    def _enter_small(self, item: Item) -> None:
        """Queue `item`, or count its blocks again if it is queued."""
        num_blocks = item.num_blocks
        self._num_small_blocks += num_blocks - self._small.get(item, 0)
        self._small[item] = num_blocks

    def _leave_small(self, item: Item) -> None:
        """Take `item` out of the small queue if it is there."""
        self._num_small_blocks -= self._small.pop(item, 0)
