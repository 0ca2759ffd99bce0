"""S3-FIFO: most runs are never used again, so let them leave through a short queue."""

from collections import OrderedDict
from typing import Generic

from typing_extensions import override

from flexkv_core.control.eviction.base import EvictionPolicy, Item

__all__ = ["S3FifoPolicy"]


class _Queue(Generic[Item]):
    """A FIFO queue that counts the blocks its items had when they entered."""

    def __init__(self) -> None:
        self._items: OrderedDict[Item, int] = OrderedDict()
        self.num_blocks = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def push(self, item: Item) -> None:
        """Append `item`; one that is queued keeps its place and is counted again."""
        num_blocks = item.num_blocks
        self.num_blocks += num_blocks - self._items.get(item, 0)
        self._items[item] = num_blocks

    def push_head(self, item: Item) -> None:
        """Queue `item` as the next to be popped."""
        self.push(item)
        self._items.move_to_end(item, last=False)

    def pop(self) -> Item:
        """Remove and return the oldest item."""
        item, num_blocks = self._items.popitem(last=False)
        self.num_blocks -= num_blocks
        return item

    def remove(self, item: Item) -> None:
        """Remove `item` if it is queued."""
        self.num_blocks -= self._items.pop(item, 0)


class S3FifoPolicy(EvictionPolicy[Item]):
    """Two FIFO queues, and the keys of what was recently evicted from the first.

    New runs enter the small queue. One that was used twice by the time it reaches the head moves
    to the main queue. Any other is evicted and its key remembered; if it comes back soon, it
    enters the main queue at once. In the main queue, a run goes round once more for each use.

    Sizes are counted in blocks. Only leaves are queued: a run that becomes a leaf again enters the
    queue it was in before.

    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1.
    """

    _SMALL_SHARE = 0.1
    _MIN_USES_TO_STAY = 2
    _MAX_USES = 3

    def __init__(self, capacity_blocks: int) -> None:
        super().__init__(capacity_blocks)
        self._small: _Queue[Item] = _Queue()
        self._main: _Queue[Item] = _Queue()
        self._queue_of: dict[Item, _Queue[Item]] = {}
        """Where every known item belongs, ordered or not."""

        self._ghosts: OrderedDict[bytes, int] = OrderedDict()
        """Blocks evicted from the small queue, by the first key of their run."""

        self._num_ghost_blocks = 0

    @override
    def add(self, item: Item) -> None:
        queue = self._queue_of.get(item)
        if queue is None:
            num_ghost_blocks = self._ghosts.pop(item.first_key, 0)
            self._num_ghost_blocks -= num_ghost_blocks
            queue = self._queue_of[item] = self._main if num_ghost_blocks else self._small
        queue.push(item)

    @override
    def take(self) -> Item | None:
        while self._small or self._main:
            if self._small and (self._small_is_full() or not self._main):
                item = self._small.pop()
                if item.num_uses < self._MIN_USES_TO_STAY:
                    return item
                item.num_uses = 0
                self._queue_of[item] = self._main
            else:
                item = self._main.pop()
                if not item.num_uses:
                    return item
                item.num_uses = min(item.num_uses, self._MAX_USES) - 1
            self._main.push(item)
        return None

    @override
    def restore(self, item: Item) -> None:
        self._queue_of[item].push_head(item)

    @override
    def record_eviction(self, item: Item, num_blocks: int) -> None:
        if self._queue_of[item] is self._main:
            return
        self._ghosts[item.first_key] = self._ghosts.pop(item.first_key, 0) + num_blocks
        self._num_ghost_blocks += num_blocks
        while self._num_ghost_blocks > self._capacity_blocks:
            _, num_forgotten_blocks = self._ghosts.popitem(last=False)
            self._num_ghost_blocks -= num_forgotten_blocks

    @override
    def discard(self, item: Item) -> None:
        queue = self._queue_of.pop(item, None)
        if queue is not None:
            queue.remove(item)

    @override
    def __contains__(self, item: object) -> bool:
        return item in self._small or item in self._main

    def _small_is_full(self) -> bool:
        """Return whether the small queue has more than its share of the tier."""
        return self._small.num_blocks > self._capacity_blocks * self._SMALL_SHARE
