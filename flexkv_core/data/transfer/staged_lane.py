"""The lane between an engine's pages and a tier of keys, for engines with a host tier of their own.

A block is one page there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import msgspec
import numpy as np
from typing_extensions import override

from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.results import refused
from flexkv_core.plan import (
    SLOT_BYTES,
    EnginePages,
    HostSlots,
    Place,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)

__all__ = ["StagedLane"]

_MAX_CALL_S = 60.0
"""A plan without a deadline waits so long for one part; then its tier counts as stuck."""


class _Part(NamedTuple):
    """Blocks of a plan that fit half of the staging slots together."""

    pages: EnginePages
    stored: StoredBlocks
    slots: HostSlots


class StagedLane(Lane):
    """Copies in `submit`, part by part: over a few host slots that belong to this lane alone.

    While the tier moves one part, pages of the part beside it are gathered or filled. The bytes are
    in the stored order and verified while they are in the slots, so what fails never reaches the
    engine's pages. A tier that does not answer by the deadline keeps the slots: until it has, every
    plan is refused with TIMEOUT.

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
            slots: The host slots to use, at least 2.
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
        return self._add_up(plan, run(plan, self._parts(pages, stored)))

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

    def _parts(self, pages: EnginePages, stored: StoredBlocks) -> list[_Part]:
        """Cut a plan into parts; each second one uses the same slots."""
        half = len(self._slots) // 2
        parents = [stored.parent, *stored.keys]
        parts = []
        for first in range(0, len(stored.keys), half):
            keys = stored.keys[first : first + half]
            slots = self._slots[first // half % 2 * half :][: len(keys)]
            part = _Part(
                EnginePages(pages.page_ids[first : first + half]),
                StoredBlocks(stored.tier, keys, parents[first]),
                HostSlots(slots.tobytes()),
            )
            parts.append(part)
        return parts

    def _save(self, plan: TransferPlan, parts: Sequence[_Part]) -> Iterator[TransferResult]:
        """Yield how each part ended; while one is written, the next is gathered."""
        writing: TransferPlan | None = None
        for part in parts:
            gathered = self._run(self._near, _step(plan, part.pages, part.slots))
            if writing is not None:
                yield self._wait(self._far, writing)
            if gathered.status is not Status.OK:
                yield gathered
                return
            writing = _step(plan, part.slots, part.stored)
            self._far.submit(writing)
        if writing is not None:
            yield self._wait(self._far, writing)

    def _load(self, plan: TransferPlan, parts: Sequence[_Part]) -> Iterator[TransferResult]:
        """Yield how each part ended; while its pages are filled, the next is read."""
        steps = [_step(plan, part.stored, part.slots) for part in parts]
        for step in steps[:1]:
            self._far.submit(step)
        for part, step, following in zip_longest(parts, steps, steps[1:]):
            read = self._wait(self._far, step)
            if following is not None and read.status is Status.OK:
                self._far.submit(following)
            yield self._fill(plan, part, read)

    def _fill(self, plan: TransferPlan, part: _Part, read: TransferResult) -> TransferResult:
        """Hand on the leading blocks that are good."""
        if not read.num_blocks:
            return read
        pages = EnginePages(part.pages.page_ids[: read.num_blocks])
        slots = HostSlots(part.slots.slots[: read.num_blocks * SLOT_BYTES])
        filled = self._run(self._near, _step(plan, slots, pages))
        return read if filled.status is Status.OK else filled

    def _run(self, lane: Lane, step: TransferPlan) -> TransferResult:
        lane.submit(step)
        return self._wait(lane, step)

    def _wait(self, lane: Lane, step: TransferPlan) -> TransferResult:
        """Return how the one step that `lane` has under way ended."""
        limit_s = _MAX_CALL_S if step.deadline_s is None else step.deadline_s - self._clock()
        if not lane.drain(max(0.0, limit_s)):
            return refused(step, self._rank, Status.TIMEOUT)
        (result,) = lane.poll()
        return result


def _step(plan: TransferPlan, source: Place, target: Place) -> TransferPlan:
    """Return the plan of one part for one half of the way."""
    slots = source if isinstance(source, HostSlots) else target
    assert isinstance(slots, HostSlots)
    num_blocks = len(slots.slots) // SLOT_BYTES
    return msgspec.structs.replace(plan, source=source, target=target, num_blocks=num_blocks)
