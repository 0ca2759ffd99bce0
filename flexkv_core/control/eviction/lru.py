"""Least recently used."""

import heapq
import itertools

from typing_extensions import override

from flexkv_core.control.eviction.base import EvictionPolicy, Item

__all__ = ["LruPolicy"]


class LruPolicy(EvictionPolicy[Item]):
    """A heap of leaves by time of last use, corrected lazily at the top.

    Uses do not reach the heap. An entry that comes to the top with a time older than its item's
    goes back with the right one, which is correct because times only grow. An entry whose item is
    no longer ordered is dropped there.
    """

    _MIN_STALE = 64
    """Up to this many entries of discarded items, rebuilding the heap is not worth it."""

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._heap: list[tuple[int, int, Item]] = []
        self._ordered: set[Item] = set()
        self._ticket = itertools.count()

    @override
    def add(self, item: Item) -> None:
        if item not in self._ordered:
            self._ordered.add(item)
            heapq.heappush(self._heap, self._entry(item))

    @override
    def take(self) -> Item | None:
        heap = self._heap
        while heap:
            last_use, _, item = heap[0]
            if item not in self._ordered:
                heapq.heappop(heap)
            elif item.last_use != last_use:
                heapq.heapreplace(heap, self._entry(item))
            else:
                heapq.heappop(heap)
                self._ordered.remove(item)
                return item
        return None

    @override
    def restore(self, item: Item) -> None:
        self._ordered.add(item)
        heapq.heappush(self._heap, (item.last_use, -next(self._ticket), item))

    @override
    def record_eviction(self, item: Item, num_blocks: int) -> None:
        """Do nothing: LRU keeps no history of evicted items."""

    @override
    def discard(self, item: Item) -> None:
        self._ordered.discard(item)
        if len(self._heap) > 2 * len(self._ordered) + self._MIN_STALE:
            self._heap = [self._entry(item) for item in self._ordered]
            heapq.heapify(self._heap)

    @override
    def __contains__(self, item: object) -> bool:
        return item in self._ordered

    def _entry(self, item: Item) -> tuple[int, int, Item]:
        """Return a heap entry; the ticket keeps items from being compared."""
        return item.last_use, next(self._ticket), item
