"""All that one rank stores: its KV, and the pools that SGLang keeps beside it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from flexkv_connectors.sglang.deployment import Deployment
from flexkv_connectors.sglang.opening import open_store
from flexkv_connectors.sglang.sidecars import Sidecar, SidecarPool, open_sidecar
from flexkv_core.block.namespace import Namespace
from flexkv_core.block_store.block_store import BlockStore, Copies
from flexkv_core.data.tiers.ssd.format import slot_bytes

__all__ = ["KV", "Activity", "Stores"]

KV = "kv"
"""What SGLang calls the pool of full attention."""


class Activity(NamedTuple):
    """What the store of one pool has done since it was last asked."""

    pool: str
    changes: Mapping[str, float]
    """Of `metrics.METRICS`."""

    copies: Copies


class Stores:
    """A store of KV, and one for each pool beside it: they divide the room as their pools would.

    Thread: `add` the scheduler's, which SGLang calls before it asks for the pool; all else any.
    """

    def __init__(self, deployment: Deployment, namespace: Namespace) -> None:
        """Open the store of the KV, which has all the room until a pool is added.

        Raises:
            ConfigError: None of the directories can be used.
            TierError: There is no memory to stage blocks in.
        """
        self.namespace = namespace
        self.kv = open_store(deployment, namespace)
        self.sidecars: dict[str, Sidecar] = {}
        self._deployment = deployment
        block_format = deployment.block_format
        kv_bytes = block_format.num_cells * slot_bytes(block_format.cell_bytes)
        self._stored_bytes = {KV: deployment.pages.num_pages * kv_bytes}
        """What all pages of a pool would take on SSD."""

        self._num_shares = {KV: 1}
        """Ranks that store a part of a pool, for each one that stores KV."""

    def add(self, pool: SidecarPool) -> None:
        """Open the store of a pool, and give it its part of the room.

        Raises:
            ConfigError: None of the directories can be used.
        """
        self._stored_bytes[pool.name] = pool.stored_bytes
        self._num_shares[pool.name] = 1 if pool.is_replicated else self._deployment.num_replicas
        sidecar = open_sidecar(self._deployment, pool, self._share(pool.name))
        self.sidecars = {**self.sidecars, pool.name: sidecar}  # others may be looking through it
        for name, store in self:
            store.resize(self._share(name))

    def __iter__(self) -> Iterator[tuple[str, BlockStore]]:
        """Yield the stores, each with the name of its pool."""
        yield KV, self.kv
        for name, sidecar in self.sidecars.items():
            yield name, sidecar.store

    def reset(self, *, keeps_name: bool) -> None:
        """Forget everything; see `SsdTier.begin_generation`.

        Raises:
            TierError: A call does not end; all other stores have forgotten everything.
        """
        with ExitStack() as resets:
            for _, store in self:
                resets.callback(store.reset, keeps_name=keeps_name)

    def close(self) -> None:
        """Let go of the files; calls under way end first.

        Raises:
            TierError: A call does not end; it keeps its files.
        """
        with ExitStack() as closing:
            for _, store in self:
                closing.callback(store.close)

    def take_activities(self) -> list[Activity]:
        """Return what each store has done since the last call."""
        return [Activity(name, store.take_counts(), store.take_copies()) for name, store in self]

    def _share(self, name: str) -> int:
        stored_bytes = self._stored_bytes
        total_bytes = sum(stored_bytes[pool] * self._num_shares[pool] for pool in stored_bytes)
        return self._deployment.quota_bytes * stored_bytes[name] // total_bytes
