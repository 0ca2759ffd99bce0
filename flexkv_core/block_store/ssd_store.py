"""One rank's blocks of one kind on SSD: what all ways to ask for them share. Knows no engine."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from typing_extensions import override

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.block_store.block_store import BlockStore, Chain, Copies
from flexkv_core.block_store.direction import Direction
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.control.hierarchy.restorer import Restorer
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import Completion
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TierReport, TransferPlan

__all__ = ["SsdStore"]

logger = logging.getLogger(__name__)

_TIER = "ssd"
_REQUEST = RequestId("hicache")
"""Whose claims are: none is open outside the lock, so that to cancel ends the one just made."""

_RANK = 0
"""Each rank has a manager of its own, which knows of no other rank."""

_RECOVERED_A_STEP = 4096
_SAVE_LIMIT_S = 60.0


class SsdStore(BlockStore):
    """A cache manager over one tier, and the lanes that go straight to and from engine pages.

    Use `ChainStore` or `PageStore`, which say what a block is found by.

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
        reading, writing = Health("reading from tier ssd"), Health("writing to tier ssd")
        self._loads = Direction("load", load_lane, reading, load_limit_s, clock)
        self._saves = Direction("save", save_lane, writing, _SAVE_LIMIT_S, clock)
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

    @override
    def resize(self, quota_bytes: int) -> None:
        self._tier.resize(quota_bytes)

    @override
    def reset(self, *, keeps_name: bool) -> None:
        with self._loads.idle(), self._saves.idle(), self._index_lock:
            self._manager.reset()
            self._manager.take_gone(_TIER)
            self._restorer = Restorer(self._manager, _TIER, (), self._counters)
            self._tier.begin_generation(secrets.token_hex(8), keeps_name=keeps_name)

    @override
    def take_counts(self) -> dict[str, float]:
        with self._index_lock:
            self._counters.set("ssd_used_blocks", self._manager.num_used_blocks(_TIER))
            self._counters.set("ssd_capacity_blocks", self._tier.capacity_blocks)
            self._counters.set("ssd_off", self._loads.is_off or self._saves.is_off)
            counts = self._counters.drain()
        moved = self._loads.take_counts() | self._saves.take_counts()
        return counts | moved | self._tier.take_counts()

    @override
    def take_copies(self) -> Copies:
        return Copies(self._loads.take_copies(), self._saves.take_copies())

    @override
    def wait_restored(self) -> None:
        self._thread.join()

    @override
    def close(self) -> None:
        with self._loads.idle(), self._saves.idle():
            self._loads.close()
            self._saves.close()
            self._tier.close()

    @override
    def _count_leading(self, keys: Sequence[BlockKey]) -> int:
        with self._index_lock:
            return self._num_found(keys)

    def _num_found(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a chain are on SSD; under the lock of the index."""
        return self._manager.lookup(keys, tier=_TIER).num_ready

    @override
    def _load(self, chains: Sequence[Chain]) -> list[int]:
        with self._loads.attempt() as is_allowed:
            if not is_allowed:
                return [0] * len(chains)
            completions = self._run(self._loads, list(map(self._plan_load, chains)))
        with self._index_lock:
            num_filled = list(map(self._take_in, chains, completions))
            self._forget_gone()
            return num_filled

    @override
    def _save(self, chains: Sequence[Chain]) -> list[int]:
        with self._saves.attempt() as is_allowed:
            if is_allowed:
                self._run(self._saves, list(map(self._plan_save, chains)))
        with self._index_lock:
            return [max(0, self._num_found(chain.keys) - chain.first_block) for chain in chains]

    def _restore(self) -> None:
        """Take in what earlier processes left: the body of a thread."""
        self._tier.wait_recovered()
        is_over = False
        while not is_over:
            with self._index_lock:
                is_over = self._restore_some()
        logger.info("ssd.restored blocks=%d", self._manager.num_used_blocks(_TIER))

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

    def _plan_load(self, chain: Chain) -> TransferPlan | None:
        with self._index_lock:
            lease = self._manager.match(_REQUEST, chain.keys, tier=_TIER)
            if lease is None:
                return None
            num_blocks = lease.num_blocks - chain.first_block
            plan = None
            if num_blocks > 0:
                plan = self._manager.plan_get(
                    lease,
                    EnginePages(chain.page_ids[:num_blocks]),
                    first_block=chain.first_block,
                    num_blocks=num_blocks,
                    deadline_s=self._loads.deadline_s,
                )
            if plan is None:
                self._manager.cancel(_REQUEST)
            return plan

    def _plan_save(self, chain: Chain) -> TransferPlan | None:
        with self._index_lock:
            if not self._restorer.is_over:
                return None  # what is on the disk is not known yet, nor where there is room
            before = chain.keys[: chain.first_block]
            if self._manager.lookup(before, tier=_TIER).num_known < len(before):
                return None  # nothing can follow, and room for it would cost other blocks
            self._fit_capacity()
            reservation = self._manager.reserve(_REQUEST, chain.keys, tier=_TIER)
            self._forget_gone()
            if isinstance(reservation, Refusal):
                return None
            first_page = reservation.first_block - chain.first_block
            assert first_page >= 0, "what is before the pages was there"
            pages = EnginePages(chain.page_ids[first_page:][: reservation.num_blocks])
            deadline_s = self._saves.deadline_s
            plan = self._manager.plan_put(reservation, pages, deadline_s=deadline_s)
            if plan is None:
                self._manager.cancel(_REQUEST)
            return plan

    def _run(
        self, direction: Direction, plans: Sequence[TransferPlan | None]
    ) -> list[Completion | None]:
        """Carry out plans at the same time, and say how each ended; None for none."""
        results = direction.run(list(filter(None, plans)))
        with self._index_lock:
            completions = list(filter(None, map(self._manager.complete, results)))
        by_job = {completion.job_id: completion for completion in completions}
        return [by_job[plan.job_id] if plan else None for plan in plans]

    def _take_in(self, chain: Chain, completion: Completion | None) -> int:
        """Forget what could not be read; return how many leading pages were filled."""
        if completion is None:
            return 0
        if completion.num_lost and completion.status is not Status.TIMEOUT:
            bad_block = chain.first_block + completion.num_blocks
            self._manager.drop_from(chain.keys[: bad_block + 1], tier=_TIER)
        return completion.num_blocks

    def _forget_gone(self) -> None:
        """Let the tier forget what left the index, before anything later is written."""
        self._tier.delete(self._manager.take_gone(_TIER))

    def _fit_capacity(self) -> None:
        """Give the index the size that there is room for."""
        num_free = self._manager.num_free_blocks(_TIER)
        if num_free + self._manager.num_used_blocks(_TIER) != self._tier.capacity_blocks:
            self._manager.resize(self._tier.capacity_blocks, tier=_TIER)
