"""Events of blocks stored and removed, for routers that track a fleet's caches. A leaf."""

from collections.abc import Sequence

import msgspec

from flexkv_core.block.types import BlockKey

__all__ = ["BlocksRemoved", "BlocksStored", "CacheCleared", "CacheEvent", "EventLog"]


class BlocksStored(msgspec.Struct, frozen=True):
    """Consecutive blocks of one chain were written, and became findable in `tier`."""

    tier: str
    keys: Sequence[BlockKey]


class BlocksRemoved(msgspec.Struct, frozen=True):
    """Blocks can no longer be found in `tier`."""

    tier: str
    keys: Sequence[BlockKey]


class CacheCleared(msgspec.Struct, frozen=True):
    """Nothing that was stored before can be found any more, in any tier."""


CacheEvent = BlocksStored | BlocksRemoved | CacheCleared


class EventLog:
    """Events in the order they happened, until they are taken.

    Thread: one takes, any may append.

    Bounded: when `limit` events wait, one `CacheCleared` replaces them all, so that a router starts
    from nothing instead of believing what is no longer true. Later events follow as usual.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._events: list[CacheEvent] = []

    def append(self, event: CacheEvent) -> None:
        """Add `event`."""
        if len(self._events) >= self._limit:
            self._events = [CacheCleared()]
        self._events.append(event)

    def take(self) -> list[CacheEvent]:
        """Return all waiting events and forget them."""
        events = self._events
        taken = events[:]
        del events[: len(taken)]  # no other list: another thread may be about to append to this one
        return taken
