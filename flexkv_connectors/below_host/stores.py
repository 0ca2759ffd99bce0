"""All that one rank stores: a block store for each of its host pools."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from flexkv_connectors.below_host.pool import StoredPool, open_store
from flexkv_connectors.below_host.rank import StorageRank
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.block_store.blocks import Copies

__all__ = ["PoolActivity", "PoolStores"]


class PoolActivity(NamedTuple):
    """What the store of one pool has done since it was last asked."""

    pool: str
    changes: Mapping[str, float]
    """Of `metrics.METRICS`."""

    copies: Copies


class PoolStores:
    """The stores of one rank, by the name of their pool: they divide its room as the pools would.

    Thread: `add` one, before that pool is asked for; all else any.
    """

    def __init__(self, rank: StorageRank) -> None:
        """Begin without pools."""
        self._rank = rank
        self._stores: dict[str, BlockStore] = {}
        self._pools: dict[str, StoredPool] = {}

    def add(self, pool: StoredPool) -> None:
        """Open the store of a pool, and give it its part of the room; the others get less.

        Raises:
            TierError: No directory can be used now, or there is no memory to stage blocks in.
        """
        self._pools[pool.name] = pool
        store = open_store(self._rank, pool, self._quota_of(pool))
        self._stores = {**self._stores, pool.name: store}  # others may be looking through it
        for name, other in self:
            other.resize(self._quota_of(self._pools[name]))

    def get(self, name: str) -> BlockStore | None:
        """Return the store of a pool, if there is one."""
        return self._stores.get(name)

    def __iter__(self) -> Iterator[tuple[str, BlockStore]]:
        """Yield the stores, each with the name of its pool."""
        yield from self._stores.items()

    def reset(self, *, keeps_name: bool) -> None:
        """Forget everything; see `SsdTier.begin_generation`.

        Raises:
            TierError: A job does not end; all other stores have forgotten everything.
        """
        with ExitStack() as resets:  # runs all of them, and raises in the end
            for _, store in self:
                resets.callback(store.reset, keeps_name=keeps_name)

    def close(self) -> None:
        """Let go of the files; jobs under way end first.

        Raises:
            TierError: A job does not end; it keeps its files.
        """
        with ExitStack() as closing:  # runs all of them, and raises in the end
            for _, store in self:
                closing.callback(store.close)

    def take_activities(self) -> list[PoolActivity]:
        """Return what each store has done since the last call."""
        return [
            PoolActivity(name, store.take_counts(), store.take_copies()) for name, store in self
        ]

    def _quota_of(self, pool: StoredPool) -> int:
        """Return the part that a pool has of one writer's room.

        A pool that is not replicated is written by every replica, so it counts once for each.
        """
        total_bytes = sum(
            other.stored_bytes * (1 if other.is_replicated else self._rank.num_replicas)
            for other in self._pools.values()
        )
        return self._rank.quota_bytes * pool.stored_bytes // total_bytes
