"""The blocks of a rank that writes them: an index over one tier, and what is evicted from it."""

import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from typing_extensions import override

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.block_store.blocks import Chain
from flexkv_core.block_store.catalog import Catalog
from flexkv_core.control.hierarchy.restorer import Restorer
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.events import EventLog
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, TierReport, TransferPlan, TransferResult

__all__ = ["WriterCatalog"]

logger = logging.getLogger(__name__)

_TIER = "ssd"
_REQUEST = RequestId("block-store")

_RANK = 0
"""Each rank has a manager of its own, which knows of no other rank."""

_RECOVERED_A_STEP = 4096


class _Fragment(NamedTuple):
    """Consecutive blocks of a chain that the index holds as a chain of their own."""

    start: int
    ready_end: int
    end: int
    """One past the last block that is ready or being written."""


class WriterCatalog(Catalog):
    """A cache manager over one tier, which takes in what earlier processes left.

    An engine offers a page once, so what comes before it may be missing for good: it was stored by
    nobody, or has been evicted. A key stands for all before it, so such blocks are kept as a
    fragment: in the index a chain of their own, on the disk under the parent that is missing. They
    are found behind what the engine has itself, and behind the missing blocks once these are
    stored; the next process restores both as one chain. No block is in two fragments.

    Thread: any. `_lock` guards the manager, is held for microseconds and never during I/O.
    """

    def __init__(
        self, tier: SsdTier, *, eviction_policy: str, events: EventLog | None = None
    ) -> None:
        """Take over the tier, and begin to take in what earlier processes left."""
        self._tier = tier
        self._counters = Counters()
        capacity_blocks = max(1, tier.capacity_blocks)
        self._manager = CacheManager(
            [TierSpec(_TIER, capacity_blocks, eviction_policy, addressed_by="key")],
            recorder=self._counters,
            events=events,
        )
        self._restorer = Restorer(
            self._manager, _TIER, (_RANK,), self._counters, keeps_fragments=True
        )
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._restore, name="flexkv-restore", daemon=True)
        self._thread.start()

    @override
    def count_found(self, keys: Sequence[BlockKey], first_block: int) -> int:
        with self._lock:
            return self._count(keys, first_block)

    @override
    def find_single(self, keys: Sequence[BlockKey]) -> list[bool]:
        with self._lock:
            return [self._manager.is_ready(key, tier=_TIER) for key in keys]

    @override
    def cut(self, chains: Sequence[Chain]) -> Sequence[Chain]:
        with self._lock:
            return [part for chain in chains for part in self._parts(chain)]

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
            How many leading pages of each chain are stored now, or being stored by another job.
        """
        with self._lock:
            for result in filter(None, results):
                self._manager.complete(result)
            return [
                self._last_fragment(chain.keys, chain.first_block).end - chain.first_block
                for chain in chains
            ]

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

    def _fragments(self, keys: Sequence[BlockKey], first_block: int) -> Iterator[_Fragment]:
        """Yield the fragments that reach `first_block` and, without a gap, those behind it."""
        start: int | None = 0
        while start is not None:
            found = self._manager.lookup(keys[start:], tier=_TIER)
            end = start + found.num_known
            if found.num_known and end >= first_block:
                yield _Fragment(start, start + found.num_ready, end)
            start = self._next_start(keys, end, max(end, first_block))

    def _next_start(self, keys: Sequence[BlockKey], first: int, last: int) -> int | None:
        """Return the first of the blocks `first` to `last` that a fragment begins with."""
        begins = self._manager.begins_chain
        return next(
            (at for at, key in enumerate(keys[first : last + 1], first) if begins(key)), None
        )

    def _last_fragment(self, keys: Sequence[BlockKey], first_block: int) -> _Fragment:
        """Return the last of `_fragments`, or an empty one at `first_block`."""
        none = _Fragment(first_block, first_block, first_block)
        return [none, *self._fragments(keys, first_block)][-1]

    def _count(self, keys: Sequence[BlockKey], first_block: int) -> int:
        found_end = first_block
        for fragment in self._fragments(keys, first_block):
            found_end = max(found_end, fragment.ready_end)
            if fragment.ready_end < fragment.end:
                break
        return found_end - first_block

    def _parts(self, chain: Chain) -> Iterator[Chain]:
        """Yield a chain in parts, each of which but for its end lies in one fragment."""
        starts = [fragment.start for fragment in self._fragments(chain.keys, chain.first_block)]
        ends = [*starts[1:], len(chain.keys)]
        for start, end in zip(starts or [0], ends, strict=True):
            yield chain.part(start, end)

    def _plan_load(self, chain: Chain, deadline_s: float) -> TransferPlan | None:
        self._manager.note_use(chain.keys)
        if not chain.page_ids:
            return None  # the part before a gap, which the engine has
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
        """Plan to store what is missing up to the next fragment, behind the one before it."""
        start, _, missing = self._last_fragment(chain.keys, chain.first_block)
        end = self._next_start(chain.keys, missing + 1, len(chain.keys))
        part = chain.part(start, len(chain.keys) if end is None else end)
        reservation = self._manager.reserve(_REQUEST, part.keys, tier=_TIER)
        self._forget_gone()
        if isinstance(reservation, Refusal):
            return None
        first_page = reservation.first_block - part.first_block
        assert first_page >= 0, "what is before the pages is there, or not in this part"
        pages = EnginePages(part.page_ids[first_page:][: reservation.num_blocks])
        plan = self._manager.plan_put(reservation, pages, deadline_s=deadline_s)
        if plan is None or reservation.first_block or not start:
            return plan
        target = msgspec.structs.replace(plan.target, parent=chain.keys[start - 1])
        return msgspec.structs.replace(plan, target=target)

    def _end_load(self, chain: Chain, result: TransferResult | None) -> int:
        """Forget what could not be read; return how many leading pages were filled."""
        completion = None if result is None else self._manager.complete(result)
        if completion is None:
            return 0
        if completion.status.is_loss:
            bad_block = chain.first_block + completion.num_sound
            self._manager.drop_from(chain.keys[: bad_block + 1], tier=_TIER)
        return completion.num_blocks

    def _forget_gone(self) -> None:
        """Let the tier forget what left the index, before anything later is written."""
        self._tier.delete(self._manager.take_gone(_TIER))
