"""One rank's blocks on SSD, found, loaded and saved by chains of keys. Knows no engine."""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from flexkv_core.hierarchy.health import Health
from flexkv_core.hierarchy.restorer import Restorer
from flexkv_core.index.radix import Refusal
from flexkv_core.job import Completion
from flexkv_core.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TierReport, TransferPlan
from flexkv_core.tiers.ssd.tier import SsdTier
from flexkv_core.transfer.lane import Lane
from flexkv_core.types import BlockKey, RequestId

__all__ = ["Copies", "Copy", "SsdStore"]

logger = logging.getLogger(__name__)

_TIER = "ssd"
_REQUEST = RequestId("hicache")
"""Whose claims are: none is open outside the lock, so that to cancel ends the one just made."""

_RANK = 0
"""Each rank has a manager of its own, which knows of no other rank."""

_RECOVERED_A_STEP = 4096
_SAVE_LIMIT_S = 60.0
_COPIES_KEPT = 1024
"""Of each direction, for whoever asks; nobody does where SGLang's metrics are off."""


class Copy(NamedTuple):
    """What one call has moved."""

    num_blocks: int
    num_bytes: int
    seconds: float


class Copies(NamedTuple):
    """Calls that have moved something."""

    loads: list[Copy]
    saves: list[Copy]


@dataclass(slots=True, eq=False)
class _Way:
    """One direction: its lane serves one call at a time, under `lock`."""

    name: str
    lane: Lane
    health: Health
    limit_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    copies: deque[Copy] = field(default_factory=lambda: deque(maxlen=_COPIES_KEPT))
    """Under the lock of the index."""


class SsdStore:
    """A cache manager over one tier, and the lanes that go straight to and from engine pages.

    Every chain of keys begins with the first block of a sequence.

    Thread: any. `_index_lock` guards the manager, is held for microseconds and never during I/O;
    it is taken last. Loads do not wait for saves.
    """

    def __init__(
        self,
        tier: SsdTier,
        load_lane: Lane,
        save_lane: Lane,
        *,
        eviction_policy: str,
        load_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the tier and the lanes, and begin to take in what earlier processes left."""
        self._tier = tier
        self._loads = _Way("load", load_lane, Health("reading from tier ssd"), load_limit_s)
        self._saves = _Way("save", save_lane, Health("writing to tier ssd"), _SAVE_LIMIT_S)
        self._clock = clock
        self._counters = Counters()
        capacity_blocks = max(1, tier.capacity_blocks)
        self._manager = CacheManager(
            [TierSpec(_TIER, capacity_blocks, eviction_policy, addressed_by="key")],
            recorder=self._counters,
        )
        self._restorer = Restorer(self._manager, _TIER, (_RANK,), self._counters)
        self._index_lock = threading.Lock()
        self._thread = threading.Thread(target=self._restore, name="flexkv-restore", daemon=True)
        self._thread.start()

    def find(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of the chain are on SSD."""
        with self._index_lock:
            return self._manager.look(keys, tier=_TIER).num_ready

    def load(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Fill pages with the last blocks of the chain; pages of bad blocks stay as they were.

        Returns:
            How many leading pages were filled.
        """
        with self._attempt(self._loads) as way:
            plan = self._plan_load(keys, page_ids, way.limit_s) if way else None
            completion = self._run(way, plan) if way and plan else None
        if completion is None:
            return 0
        with self._index_lock:
            if completion.num_lost and completion.status is not Status.TIMEOUT:
                first_block = len(keys) - len(page_ids)
                bad_block = first_block + completion.num_blocks
                self._manager.drop_from(keys[: bad_block + 1], tier=_TIER)
            self._forget_gone()
        return completion.num_blocks

    def save(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Store pages as the last blocks of the chain.

        Returns:
            How many leading pages are stored now; 0 as well if a block before them is not.
        """
        first_block = len(keys) - len(page_ids)
        with self._attempt(self._saves) as way:
            plan = self._plan_save(keys, page_ids, way.limit_s) if way else None
            if way and plan:
                self._run(way, plan)
        with self._index_lock:
            return max(0, self._manager.look(keys, tier=_TIER).num_ready - first_block)

    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; see `SsdTier.begin_generation`."""
        with self._loads.lock, self._saves.lock, self._index_lock:
            self._manager.reset()
            self._manager.take_gone(_TIER)
            self._restorer = Restorer(self._manager, _TIER, (), self._counters)
            self._tier.begin_generation(secrets.token_hex(8), keeps_name=keeps_name)

    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""
        with self._index_lock:
            self._counters.set("ssd_used_blocks", self._manager.num_used_blocks(_TIER))
            self._counters.set("ssd_capacity_blocks", self._tier.capacity_blocks)
            is_off = self._loads.health.is_off or self._saves.health.is_off
            self._counters.set("ssd_off", is_off)
            return self._counters.drain() | self._tier.take_counts()

    def take_copies(self) -> Copies:
        """Return what calls have moved since the last call of this."""
        with self._index_lock:
            return Copies(*(_taken(way.copies) for way in (self._loads, self._saves)))

    def wait_restored(self) -> None:
        """Wait until all that earlier processes left can be found."""
        self._thread.join()

    def close(self) -> None:
        """Let go of the files; calls under way end first. A second call does nothing."""
        with self._loads.lock, self._saves.lock:
            for way in (self._loads, self._saves):
                way.lane.close()
            self._tier.close()

    def _restore(self) -> None:
        """Take in what earlier processes left: the body of a thread."""
        self._tier.wait_recovered()
        is_over = False
        while not is_over:
            with self._index_lock:
                is_over = self._restore_some()

    def _restore_some(self) -> bool:
        found = TierReport(
            tier=_TIER,
            rank=_RANK,
            capacity_blocks=self._tier.capacity_blocks,
            recovered=self._tier.take_recovered(_RECOVERED_A_STEP),
            is_recovered=self._tier.is_recovered,
        )
        self._restorer.note(found)
        self._tier.delete(self._restorer.step())
        return self._restorer.is_over

    @contextmanager
    def _attempt(self, way: _Way) -> Iterator[_Way | None]:
        """Have a direction for one call; None where it fails and is left alone."""
        with way.lock:
            now_s = self._clock()
            if not way.health.allows(now_s):
                yield None
                return
            way.health.begin(now_s)
            yield way

    def _plan_load(
        self, keys: Sequence[BlockKey], page_ids: Sequence[int], limit_s: float
    ) -> TransferPlan | None:
        first_block = len(keys) - len(page_ids)
        with self._index_lock:
            lease = self._manager.match(_REQUEST, keys, tier=_TIER)
            if lease is None:
                return None
            num_blocks = lease.num_blocks - first_block
            plan = None
            if num_blocks > 0:
                plan = self._manager.plan_get(
                    lease,
                    EnginePages(page_ids[:num_blocks]),
                    first_block=first_block,
                    num_blocks=num_blocks,
                    deadline_s=self._clock() + limit_s,
                )
            if plan is None:
                self._manager.cancel(_REQUEST)
            return plan

    def _plan_save(
        self, keys: Sequence[BlockKey], page_ids: Sequence[int], limit_s: float
    ) -> TransferPlan | None:
        first_block = len(keys) - len(page_ids)
        with self._index_lock:
            if not self._restorer.is_over:
                return None  # what is on the disk is not known yet, nor where there is room
            self._fit_capacity()
            reservation = self._manager.reserve(_REQUEST, keys, tier=_TIER)
            self._forget_gone()
            if isinstance(reservation, Refusal):
                return None
            plan = None
            if reservation.first_block >= first_block:
                first_page = reservation.first_block - first_block
                pages = EnginePages(page_ids[first_page:][: reservation.num_blocks])
                plan = self._manager.plan_put(
                    reservation, pages, deadline_s=self._clock() + limit_s
                )
            if plan is None:
                self._manager.cancel(_REQUEST)
            return plan

    def _run(self, way: _Way, plan: TransferPlan) -> Completion:
        way.lane.submit(plan)
        while not (results := way.lane.poll()):
            way.lane.drain(way.limit_s)
        (result,) = results
        way.health.note(ok=result.status not in (Status.ERROR, Status.TIMEOUT), now_s=self._clock())
        with self._index_lock:
            completion = self._manager.complete(result)
            assert completion is not None
            self._count(way, completion)
        return completion

    def _count(self, way: _Way, completion: Completion) -> None:
        self._counters.add(f"{way.name}_bytes", completion.num_bytes)
        self._counters.add(f"{way.name}_seconds", completion.seconds)
        self._counters.add(f"{way.name}_failed_blocks", completion.num_lost)
        if completion.num_blocks:
            copy = Copy(completion.num_blocks, completion.num_bytes, completion.seconds)
            way.copies.append(copy)

    def _forget_gone(self) -> None:
        """Let the tier forget what left the index, before anything later is written."""
        self._tier.delete(self._manager.take_gone(_TIER))

    def _fit_capacity(self) -> None:
        """Give the index the size that there is room for."""
        num_free = self._manager.num_free_blocks(_TIER)
        if num_free + self._manager.num_used_blocks(_TIER) != self._tier.capacity_blocks:
            self._manager.resize(self._tier.capacity_blocks, tier=_TIER)


def _taken(copies: deque[Copy]) -> list[Copy]:
    """Empty `copies`."""
    taken = list(copies)
    copies.clear()
    return taken
