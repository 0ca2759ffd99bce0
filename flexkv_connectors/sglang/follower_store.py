"""One rank's blocks on SSD, where another rank of the engine writes them. Knows no engine."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from typing_extensions import override

from flexkv_connectors.sglang.block_store import BlockStore, Chain, Copies, Copy
from flexkv_core.errors import TierError
from flexkv_core.hierarchy.health import Health
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan, TransferResult
from flexkv_core.tiers.ssd.follower import Follower
from flexkv_core.transfer.lane import Lane
from flexkv_core.types import BlockKey, JobId

__all__ = ["FollowerStore"]

_FAILURES = frozenset({Status.ERROR, Status.TIMEOUT})
_COPIES_KEPT = 1024
"""For whoever asks; nobody does where SGLang's metrics are off."""


class FollowerStore(BlockStore):
    """Asked like a store that writes; it has no index of its own and nothing to evict.

    Use `ChainFollower` or `PageFollower`, which say what a block is found by.

    SGLang goes by the rank that finds the fewest pages, so being behind the writer does no harm.

    Thread: any. `_loading` lets one load at a time use the lane; `_counting` guards what is counted
    and is taken last.
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
        self._lane = lane
        self._load_limit_s = load_limit_s
        self._clock = clock
        self._health = Health("reading from tier ssd")
        self._job_ids = map(JobId, itertools.count())
        self._loading = threading.Lock()
        self._counting = threading.Lock()
        self._counters = Counters()
        self._copies: deque[Copy] = deque(maxlen=_COPIES_KEPT)

    @override
    def resize(self, quota_bytes: int) -> None:
        """Do nothing: the writer has the room."""

    @override
    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; the writer does so, too.

        Raises:
            TierError: A call does not end; nothing is forgotten.
        """
        with self._idle():
            self._tier.begin_generation(keeps_name=keeps_name)

    @override
    def take_counts(self) -> dict[str, float]:
        with self._counting:
            self._counters.set("ssd_off", self._health.is_off)
            return self._counters.drain() | self._tier.take_counts()

    @override
    def take_copies(self) -> Copies:
        with self._counting:
            loads = list(self._copies)
            self._copies.clear()
        return Copies(loads, [])

    @override
    def wait_restored(self) -> None:
        """Return at once: what the writer has restored is found with the next call."""

    @override
    def close(self) -> None:
        with self._idle():
            self._lane.close()
            self._tier.close()

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Let no load be under way; a disk that hangs must not hang the thread that schedules."""
        if not self._loading.acquire(timeout=2 * self._load_limit_s):
            raise TierError(self._tier.name, "a load does not end")
        try:
            yield
        finally:
            self._loading.release()

    @override
    def _count_leading(self, keys: Sequence[BlockKey]) -> int:
        return self._tier.count_leading(keys)

    @override
    def _load(self, chains: Sequence[Chain]) -> list[int]:
        with self._loading:
            now_s = self._clock()
            if not self._health.allows(now_s):
                return [0] * len(chains)
            self._health.begin(now_s)
            plans = list(map(self._plan, chains))
            results = self._run([plan for plan in plans if plan.num_blocks])
        self._count(plans, results, self._clock() - now_s)
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
            deadline_s=self._clock() + self._load_limit_s,
        )

    def _run(self, plans: Sequence[TransferPlan]) -> list[TransferResult]:
        """Carry out plans at the same time."""
        for plan in plans:
            self._lane.submit(plan)
        results = self._lane.poll()
        while len(results) < len(plans):
            self._lane.drain(self._load_limit_s)
            results += self._lane.poll()
        if results:
            is_ok = not any(result.status in _FAILURES for result in results)
            self._health.note(ok=is_ok, now_s=self._clock())
        return results

    def _count(
        self, plans: Sequence[TransferPlan], results: Sequence[TransferResult], seconds: float
    ) -> None:
        num_blocks = sum(result.num_blocks for result in results)
        num_bytes = sum(result.num_bytes for result in results)
        with self._counting:
            self._counters.add("load_bytes", num_bytes)
            self._counters.add("load_seconds", seconds if results else 0)
            num_lost = sum(plan.num_blocks for plan in plans) - num_blocks
            self._counters.add("load_failed_blocks", num_lost)
            if num_blocks:
                self._copies.append(Copy(num_blocks, num_bytes, seconds))
