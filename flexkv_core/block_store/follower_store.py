"""One rank's blocks on SSD, where another rank of the engine writes them. Knows no engine."""

import itertools
import time
from collections.abc import Callable, Sequence

from typing_extensions import override

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.block_store import BlockStore, Chain, Copies
from flexkv_core.block_store.direction import Direction
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, StoredBlocks, TransferPlan

__all__ = ["FollowerStore"]


class FollowerStore(BlockStore):
    """Asked like a store that writes; it has no index of its own and nothing to evict.

    Use `ChainFollower` or `PageFollower`, which say what a block is found by.

    SGLang goes by the rank that finds the fewest pages, so being behind the writer does no harm.

    Thread: any.
    """

    def __init__(
        self,
        tier: Follower,
        lane: Lane,
        *,
        load_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the tier and the lane."""
        self._tier = tier
        self._loads = Direction("load", lane, Health("reading from tier ssd"), load_limit_s, clock)
        self._job_ids = map(JobId, itertools.count())
        self._counters = Counters()

    @override
    def resize(self, quota_bytes: int) -> None:
        """Do nothing: the writer has the room."""

    @override
    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; the writer does so, too.

        Raises:
            TierError: A call does not end; nothing is forgotten.
        """
        with self._loads.idle():
            self._tier.begin_generation()

    @override
    def take_counts(self) -> dict[str, float]:
        self._counters.set("ssd_off", self._loads.is_off)
        return self._counters.drain() | self._loads.take_counts() | self._tier.take_counts()

    @override
    def take_copies(self) -> Copies:
        return Copies(self._loads.take_copies(), [])

    @override
    def wait_restored(self) -> None:
        """Return at once: what the writer has restored is found with the next call."""

    @override
    def close(self) -> None:
        with self._loads.idle():
            self._loads.close()
            self._tier.close()

    @override
    def _count_leading(self, keys: Sequence[BlockKey]) -> int:
        return self._tier.count_leading(keys)

    @override
    def _load(self, chains: Sequence[Chain]) -> list[int]:
        with self._loads.attempt() as is_allowed:
            if not is_allowed:
                return [0] * len(chains)
            plans = list(map(self._plan, chains))
            results = self._loads.run([plan for plan in plans if plan.num_blocks])
        num_filled = {result.job_id: result.num_blocks for result in results}
        return [num_filled.get(plan.job_id, 0) for plan in plans]

    @override
    def _save(self, chains: Sequence[Chain]) -> list[int]:
        """Do nothing, and say that all pages are stored: the writer is asked for the same ones."""
        return [len(chain.page_ids) for chain in chains]

    def _plan(self, chain: Chain) -> TransferPlan:
        """Return how to load what there is; no blocks for nothing."""
        first_block = chain.first_block
        num_blocks = max(0, self._tier.count_leading(chain.keys) - first_block)
        keys = chain.keys[first_block:][:num_blocks]
        parent = chain.keys[first_block - 1] if first_block else None
        return TransferPlan(
            job_id=next(self._job_ids),
            source=StoredBlocks(self._tier.name, keys, parent),
            target=EnginePages(chain.page_ids[:num_blocks]),
            num_blocks=num_blocks,
            deadline_s=self._loads.deadline_s,
        )
