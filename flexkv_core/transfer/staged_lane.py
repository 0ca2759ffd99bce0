"""The lane between an engine's pages and a tier of keys, for engines with a host tier of their own.

A block is one page there.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from typing_extensions import override

from flexkv_core.index.slot_pool import SLOT_BYTES
from flexkv_core.plan import (
    EnginePages,
    HostSlots,
    Place,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)
from flexkv_core.transfer.lane import Lane
from flexkv_core.transfer.results import refused

__all__ = ["StagedLane"]

_MAX_CALL_S = 60.0
"""A plan without a deadline waits so long for one part; then its tier counts as stuck."""


class _Part(NamedTuple):
    """Blocks of a plan that fit the staging slots together."""

    pages: EnginePages
    stored: StoredBlocks
    slots: HostSlots


class StagedLane(Lane):
    """Copies in `submit`, part by part: over a few host slots that belong to this lane alone.

    The bytes are in the stored order and verified while they are in the slots, so what fails never
    reaches the engine's pages. A tier that does not answer by the deadline keeps the slots: until
    it has, every plan is refused with TIMEOUT.

    Thread: one at a time.
    """

    def __init__(
        self,
        rank: int,
        near: Lane,
        far: Lane,
        slots: range,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `near` and `far`.

        Args:
            rank: Whose results these are.
            near: Between engine pages and host slots.
            far: Between host slots and the tier.
            slots: The host slots to use.
            clock: What deadlines are compared with.
        """
        self._rank = rank
        self._near = near
        self._far = far
        self._slots = np.asarray(slots, np.int64)
        self._clock = clock
        self._is_closed = False
        self._results: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        self._results.append(self._execute(plan))

    @override
    def poll(self) -> list[TransferResult]:
        results, self._results = self._results, []
        return results

    @override
    def drain(self, timeout_s: float) -> bool:
        return self._far.drain(timeout_s)

    @override
    def close(self) -> None:
        self._is_closed = True
        self._near.close()
        self._far.close()

    def _execute(self, plan: TransferPlan) -> TransferResult:
        if self._is_closed or not self._far.drain(0.0):
            return refused(plan, self._rank, Status.TIMEOUT)
        match plan.source, plan.target:
            case EnginePages() as pages, StoredBlocks() as stored:
                run = self._save
            case StoredBlocks() as stored, EnginePages() as pages:
                run = self._load
            case _:
                error = "a staged lane copies between engine pages and stored blocks"
                return refused(plan, self._rank, Status.ERROR, error)
        if not len(stored.keys) == len(pages.page_ids) == plan.num_blocks:
            error = f"{len(pages.page_ids)} pages and {len(stored.keys)} keys do not fit the plan"
            return refused(plan, self._rank, Status.ERROR, error)
        self._far.poll()  # what came too late was reported long ago
        return self._add_up(plan, (run(plan, part) for part in self._parts(pages, stored)))

    def _add_up(self, plan: TransferPlan, parts: Iterator[TransferResult]) -> TransferResult:
        """Run parts up to the first that fails, and report on all of them as one."""
        begin_s = self._clock()
        total = refused(plan, self._rank, Status.OK)
        for part in parts:
            total = msgspec.structs.replace(
                total,
                status=part.status,
                num_blocks=total.num_blocks + part.num_blocks,
                num_bytes=total.num_bytes + part.num_bytes,
                error=part.error,
            )
            if part.status is not Status.OK:
                break
        return msgspec.structs.replace(total, seconds=self._clock() - begin_s)

    def _parts(self, pages: EnginePages, stored: StoredBlocks) -> Iterator[_Part]:
        parent = stored.parent
        for first in range(0, len(stored.keys), len(self._slots)):
            keys = stored.keys[first : first + len(self._slots)]
            yield _Part(
                EnginePages(pages.page_ids[first : first + len(keys)]),
                StoredBlocks(stored.tier, keys, parent),
                HostSlots(self._slots[: len(keys)].tobytes()),
            )
            parent = keys[-1]

    def _save(self, plan: TransferPlan, part: _Part) -> TransferResult:
        gathered = self._step(plan, self._near, part.pages, part.slots)
        if gathered.status is not Status.OK:
            return gathered
        return self._step(plan, self._far, part.slots, part.stored)

    def _load(self, plan: TransferPlan, part: _Part) -> TransferResult:
        """Read, and hand on the leading blocks that are good."""
        read = self._step(plan, self._far, part.stored, part.slots)
        if not read.num_blocks:
            return read
        pages = EnginePages(part.pages.page_ids[: read.num_blocks])
        slots = HostSlots(self._slots[: read.num_blocks].tobytes())
        scattered = self._step(plan, self._near, slots, pages)
        return read if scattered.status is Status.OK else scattered

    def _step(self, plan: TransferPlan, lane: Lane, source: Place, target: Place) -> TransferResult:
        """Let `lane` copy one part over one half of the way."""
        slots = source if isinstance(source, HostSlots) else target
        assert isinstance(slots, HostSlots)
        num_blocks = len(slots.slots) // SLOT_BYTES
        part = msgspec.structs.replace(plan, source=source, target=target, num_blocks=num_blocks)
        lane.submit(part)
        limit_s = _MAX_CALL_S if plan.deadline_s is None else plan.deadline_s - self._clock()
        if not lane.drain(max(0.0, limit_s)):
            return refused(part, self._rank, Status.TIMEOUT)
        (result,) = lane.poll()
        return result
