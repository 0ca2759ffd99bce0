"""One rank's blocks on SSD, where another rank of the engine writes them. Knows no engine."""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from flexkv_connectors.sglang.ssd_store import Copies, Copy
from flexkv_core.hierarchy.health import Health
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan, TransferResult
from flexkv_core.tiers.ssd.follower import Follower
from flexkv_core.transfer.lane import Lane
from flexkv_core.types import BlockKey, JobId

__all__ = ["FollowerStore"]

_COPIES_KEPT = 1024
"""For whoever asks; nobody does where SGLang's metrics are off."""


class FollowerStore:
    """Asked like a store that writes; it has no index of its own and nothing to evict.

    SGLang goes by the rank that finds the fewest pages, so it does no harm to be behind the writer.

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

    def find(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of the chain the writer has stored."""
        return self._tier.count_leading(keys)

    def load(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Fill pages with the last blocks of the chain; pages of bad blocks are not to be used.

        Returns:
            How many leading pages were filled.
        """
        with self._loading:
            now_s = self._clock()
            plan = self._plan(keys, page_ids) if self._health.allows(now_s) else None
            if plan is None:
                return 0
            self._health.begin(now_s)
            result = self._run(plan)
            is_ok = result.status not in (Status.ERROR, Status.TIMEOUT)
            self._health.note(ok=is_ok, now_s=self._clock())
        self._count(plan, result)
        return result.num_blocks

    def save(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Do nothing, and say that all pages are stored: the writer is asked for the same ones."""
        del keys
        return len(page_ids)

    def resize(self, quota_bytes: int) -> None:
        """Do nothing: the writer has the room."""

    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; the writer does so, too."""
        with self._loading:
            self._tier.begin_generation(keeps_name=keeps_name)

    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""
        with self._counting:
            self._counters.set("ssd_off", self._health.is_off)
            return self._counters.drain() | self._tier.take_counts()

    def take_copies(self) -> Copies:
        """Return what calls have moved since the last call of this."""
        with self._counting:
            loads = list(self._copies)
            self._copies.clear()
        return Copies(loads, [])

    def wait_restored(self) -> None:
        """Return at once: what the writer has restored is found with the next call."""

    def close(self) -> None:
        """Let go of the files; a call under way ends first. A second call does nothing."""
        with self._loading:
            self._lane.close()
            self._tier.close()

    def _plan(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> TransferPlan | None:
        first_block = len(keys) - len(page_ids)
        num_blocks = self._tier.count_leading(keys) - first_block
        if num_blocks <= 0:
            return None
        parent = keys[first_block - 1] if first_block else None
        return TransferPlan(
            job_id=next(self._job_ids),
            source=StoredBlocks(self._tier.name, keys[first_block:][:num_blocks], parent),
            target=EnginePages(page_ids[:num_blocks]),
            num_blocks=num_blocks,
            deadline_s=self._clock() + self._load_limit_s,
        )

    def _run(self, plan: TransferPlan) -> TransferResult:
        self._lane.submit(plan)
        while not (results := self._lane.poll()):
            self._lane.drain(self._load_limit_s)
        (result,) = results
        return result

    def _count(self, plan: TransferPlan, result: TransferResult) -> None:
        with self._counting:
            self._counters.add("load_bytes", result.num_bytes)
            self._counters.add("load_seconds", result.seconds)
            self._counters.add("load_failed_blocks", plan.num_blocks - result.num_blocks)
            if result.num_blocks:
                self._copies.append(Copy(result.num_blocks, result.num_bytes, result.seconds))
