"""The blocks of a rank that writes them: an index over one tier, and what is evicted from it."""

import logging
import secrets
import threading
from collections.abc import Sequence

from typing_extensions import override

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.block_store.blocks import Chain
from flexkv_core.block_store.catalog import Catalog
from flexkv_core.control.hierarchy.restorer import Restorer
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, TierReport, TransferPlan, TransferResult

__all__ = ["WriterCatalog"]

logger = logging.getLogger(__name__)

_TIER = "ssd"
_REQUEST = RequestId("block-store")

_RANK = 0
"""Each rank has a manager of its own, which knows of no other rank."""

_RECOVERED_A_STEP = 4096


class WriterCatalog(Catalog):
    """A cache manager over one tier, which takes in what earlier processes left.

    Thread: any. `_lock` guards the manager, is held for microseconds and never during I/O.
    """

    def __init__(self, tier: SsdTier, *, eviction_policy: str) -> None:
        """Take over the tier, and begin to take in what earlier processes left."""
        self._tier = tier
        self._counters = Counters()
        capacity_blocks = max(1, tier.capacity_blocks)
        self._manager = CacheManager(
            [TierSpec(_TIER, capacity_blocks, eviction_policy, addressed_by="key")],
            recorder=self._counters,
        )
        self._restorer = Restorer(self._manager, _TIER, (_RANK,), self._counters)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._restore, name="flexkv-restore", daemon=True)
        self._thread.start()

    @override
    def count_leading(self, chains: Sequence[Sequence[BlockKey]]) -> list[int]:
        with self._lock:
            return list(map(self._count, chains))

    @override
    def plan_loads(
        self, chains: Sequence[Chain], deadline_s: float
    ) -> Sequence[TransferPlan | None]:
        with self._lock:
            return [self._plan_load(chain, deadline_s) for chain in chains]

    @override
    def end_loads(
        self, chains: Sequence[Chain], results: Sequence[TransferResult | None]
    ) -> list[int]:
        with self._lock:
            num_filled = list(map(self._end_load, chains, results))
            self._forget_gone()
            return num_filled

    def plan_saves(
        self, chains: Sequence[Chain], deadline_s: float
    ) -> Sequence[TransferPlan | None]:
        """Plan to store what is missing of each chain, as far as there is room; None for none."""
        with self._lock:
            if not self._restorer.is_over:
                # What is on the disk is not known yet, nor where there is room.
                return [None] * len(chains)
            self._manager.resize(self._tier.capacity_blocks, tier=_TIER)
            return [self._plan_save(chain, deadline_s) for chain in chains]

    def end_saves(
        self, chains: Sequence[Chain], results: Sequence[TransferResult | None]
    ) -> list[int]:
        """End plans.

        Returns:
            How many leading pages of each chain are stored now, or being stored by another job; 0
            if a block before them is not.
        """
        with self._lock:
            for result in filter(None, results):
                self._manager.complete(result)
            known = [self._manager.lookup(chain.keys, tier=_TIER).num_known for chain in chains]
            return [max(0, n - chain.first_block) for n, chain in zip(known, chains, strict=True)]

    @override
    def reset(self, *, keeps_name: bool) -> None:
        with self._lock:
            # The index first: until the tier has forgotten them, too, nobody finds old blocks.
            self._manager.reset()
            # Of no owner, so it is over at once, and ends the thread that restores.
            self._restorer = Restorer(self._manager, _TIER, (), self._counters)
            self._tier.begin_generation(secrets.token_hex(8), keeps_name=keeps_name)

    @override
    def resize(self, quota_bytes: int) -> None:
        self._tier.resize(quota_bytes)  # without the lock: it waits for a slab that is growing

    @override
    def take_counts(self) -> dict[str, float]:
        with self._lock:
            self._counters.set("ssd_used_blocks", self._manager.num_used_blocks(_TIER))
            self._counters.set("ssd_capacity_blocks", self._tier.capacity_blocks)
            return self._counters.drain() | self._tier.take_counts()

    @override
    def wait_restored(self) -> None:
        self._thread.join()

    @override
    def close(self) -> None:
        self._tier.close()  # `_restore` may go on meanwhile: a closed tier has nothing to give

    def _restore(self) -> None:
        """Take in what earlier processes left: the body of a thread."""
        self._tier.wait_recovered()
        is_over = False
        while not is_over:
            with self._lock:
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

    def _count(self, keys: Sequence[BlockKey]) -> int:
        return self._manager.lookup(keys, tier=_TIER).num_ready

    def _plan_load(self, chain: Chain, deadline_s: float) -> TransferPlan | None:
        self._manager.note_use(chain.keys)
        lease = self._manager.match(_REQUEST, chain.keys, tier=_TIER)
        if lease is None or lease.num_blocks <= chain.first_block:
            self._counters.add("match_miss")
            self._manager.cancel(_REQUEST)
            return None
        num_blocks = lease.num_blocks - chain.first_block
        self._counters.add("match_hit_blocks", num_blocks)
        pages = EnginePages(chain.page_ids[:num_blocks])
        return self._manager.plan_get(
            lease,
            pages,
            first_block=chain.first_block,
            num_blocks=num_blocks,
            deadline_s=deadline_s,
        )

    def _plan_save(self, chain: Chain, deadline_s: float) -> TransferPlan | None:
        before = chain.keys[: chain.first_block]
        if self._manager.lookup(before, tier=_TIER).num_known < len(before):
            return None  # nothing can follow, and room for it would cost other blocks
        reservation = self._manager.reserve(_REQUEST, chain.keys, tier=_TIER)
        self._forget_gone()
        if isinstance(reservation, Refusal):
            return None
        first_page = reservation.first_block - chain.first_block
        assert first_page >= 0, "what is before the pages was there"
        pages = EnginePages(chain.page_ids[first_page:][: reservation.num_blocks])
        return self._manager.plan_put(reservation, pages, deadline_s=deadline_s)

    def _end_load(self, chain: Chain, result: TransferResult | None) -> int:
        """Forget what could not be read; return how many leading pages were filled."""
        completion = None if result is None else self._manager.complete(result)
        if completion is None:
            return 0
        if completion.status.is_loss:
            bad_block = chain.first_block + completion.num_blocks
            self._manager.drop_from(chain.keys[: bad_block + 1], tier=_TIER)
        return completion.num_blocks

    def _forget_gone(self) -> None:
        """Let the tier forget what left the index, before anything later is written."""
        self._tier.delete(self._manager.take_gone(_TIER))
