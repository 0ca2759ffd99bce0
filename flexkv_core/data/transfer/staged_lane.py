"""The lane between an engine's pages and a tier of keys, for engines with a host tier of their own.

A block is one page there.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from typing_extensions import override

from flexkv_core.block.types import JobId
from flexkv_core.data.transfer.device import Ids
from flexkv_core.data.transfer.lane import AsyncLane, Lane
from flexkv_core.data.transfer.results import ended, num_leading, refused, statuses_of
from flexkv_core.data.transfer.staging import StagingRing
from flexkv_core.plan import (
    Endpoint,
    EnginePages,
    HostSlots,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)

__all__ = ["StagedLane"]

_LIMIT_S = 60.0
"""What a plan without a deadline may take; then its tier counts as stuck."""


@dataclass(slots=True, eq=False)
class _Job:
    """One plan until it is reported."""

    plan: TransferPlan
    page_ids: Sequence[int]
    stored: StoredBlocks
    is_save: bool
    begin_s: float
    deadline_s: float
    num_begun: int = 0
    """Blocks that are in a part already, or that none will be made for."""

    num_in_tier: int = 0
    """Parts that the tier is moving."""

    num_open: int = 0
    """Parts that have not ended: besides those, the ones that were read and are to be filled."""

    block_bytes: int = 0
    error: str = ""
    is_reported: bool = False
    statuses: list[Status] = field(init=False)
    """How each block ended; TIMEOUT while it has not."""

    def __post_init__(self) -> None:
        self.statuses = [Status.TIMEOUT] * self.plan.num_blocks

    @property
    def has_begun(self) -> bool:
        """Whether no part is left to begin."""
        return self.num_begun == self.plan.num_blocks

    @property
    def may_begin(self) -> bool:
        """Whether another part may begin; a chain is read part by part, up to the first failure."""
        is_read_in_turn = self.stored.is_chain and not self.is_save
        return not (self.has_begun or self.is_reported or (is_read_in_turn and self.num_in_tier))

    def stop(self, status: Status = Status.TIMEOUT) -> None:
        """Begin nothing more; blocks that have not begun end with `status`."""
        self.statuses[self.num_begun :] = [status] * (self.plan.num_blocks - self.num_begun)
        self.num_begun = self.plan.num_blocks

    def stop_at_failure(self, statuses: Sequence[Status]) -> None:
        """Begin nothing more if this is a chain and one of its blocks has failed."""
        if self.stored.is_chain and num_leading(statuses) < len(statuses):
            self.stop()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Blocks of a plan that are in staging together."""

    part_id: JobId
    job: _Job
    first_block: int
    slots: Ids

    @property
    def num_blocks(self) -> int:
        """Blocks in it."""
        return len(self.slots)

    def near_step(self, blocks: Sequence[int]) -> TransferPlan:
        """Return the plan between the pages and the slots of some of its blocks.

        It has no deadline: what has been read is copied, however late.
        """
        pages = EnginePages([self.job.page_ids[self.first_block + at] for at in blocks])
        step = self._step(pages, HostSlots(self.slots[blocks].tobytes()), len(blocks))
        return msgspec.structs.replace(step, deadline_s=None)

    def far_step(self) -> TransferPlan:
        """Return the plan between the slots and the tier."""
        stored, first = self.job.stored, self.first_block
        keys = stored.keys[first : first + self.num_blocks]
        parent = stored.keys[first - 1] if first else stored.parent
        place = msgspec.structs.replace(stored, keys=keys, parent=parent)
        return self._step(HostSlots(self.slots.tobytes()), place, self.num_blocks)

    def _step(self, near: Endpoint, far: Endpoint, num_blocks: int) -> TransferPlan:
        source, target = (near, far) if self.job.is_save else (far, near)
        return msgspec.structs.replace(
            self.job.plan, job_id=self.part_id, source=source, target=target, num_blocks=num_blocks
        )


class StagedLane(AsyncLane):
    """Moves plans part by part over a few host slots that belong to this lane alone.

    `submit` begins what there are slots for, and `poll` goes on: it fills the pages of parts that
    were read and begins the next ones, so it copies; the tier moves bytes on its own threads
    meanwhile. The bytes are in the stored order and verified while they are in the slots, so what
    fails or comes after its plan was reported never reaches the engine's pages. A plan that has not
    ended by its deadline is reported as TIMEOUT by the next `poll`, and one that is cancelled as it
    stands. What the tier still does for it keeps its slots; if that has not ended by the deadline
    the tier counts as stuck until it has: new plans are refused with TIMEOUT.

    Thread: one at a time, but for `wait`.
    """

    def __init__(
        self,
        rank: int,
        near: Lane,
        far: AsyncLane,
        slots: range,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `near` and `far`.

        Args:
            rank: Whose results these are.
            near: Between engine pages and host slots; copies in `submit`.
            far: Between host slots and the tier.
            slots: The host slots to use, at least 2.
            clock: What deadlines are compared with.
        """
        self._rank = rank
        self._near = near
        self._far = far
        self._slots = np.asarray(slots, np.int64)
        self._ring = StagingRing(len(slots))
        self._clock = clock
        self._is_closed = False
        self._part_ids = map(JobId, itertools.count(1))
        self._jobs: list[_Job] = []
        """Not reported, in the order in which they came."""

        self._parts: dict[JobId, _Part] = {}
        """Of jobs, reported or not, that the tier is moving."""

        self._read: deque[tuple[_Part, TransferResult]] = deque()
        """What was read and has not been filled into its pages."""

        self._results: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        match plan.source, plan.target:
            case EnginePages() as pages, StoredBlocks() as stored:
                is_save = True
            case StoredBlocks() as stored, EnginePages() as pages:
                is_save = False
            case _:
                self._refuse(plan, Status.ERROR, "a staged lane serves pages and stored blocks")
                return
        self._take_in()  # what came too late and has ended since is no sign of a stuck tier
        num_pages, now_s = len(pages.page_ids), self._clock()
        deadline_s = now_s + _LIMIT_S if plan.deadline_s is None else plan.deadline_s
        if not len(stored.keys) == num_pages == plan.num_blocks > 0:
            error = f"{num_pages} pages and {len(stored.keys)} keys do not fit the plan"
            self._refuse(plan, Status.ERROR, error)
        elif self._is_closed:
            self._refuse(plan, Status.CLOSED)
        elif now_s >= deadline_s or self._is_stuck:
            self._refuse(plan, Status.TIMEOUT)
        else:
            self._jobs.append(_Job(plan, pages.page_ids, stored, is_save, now_s, deadline_s))
            self._begin_parts()

    @override
    def poll(self) -> list[TransferResult]:
        self._take_in()
        self._begin_parts()  # the tier reads the next ones while pages are filled
        while self._read:
            self._fill(*self._read.popleft())
            self._begin_parts()
        self._report_late()  # what was read in time counts, however late the poll
        results, self._results = self._results, []
        return results

    @override
    def wait(self, timeout_s: float) -> None:
        """Wait for the tier, and no longer than to the next deadline."""
        if not (self._results or self._read):
            now_s = self._clock()
            left = [job.deadline_s - now_s for job in tuple(self._jobs)]
            self._far.wait(max(0.0, min([timeout_s, *left])) if left else 0.0)

    @override
    def drain(self, timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        self._results = self.poll()
        while self._parts and (left_s := end_s - time.monotonic()) > 0:
            self._far.wait(left_s)
            self._results = self.poll()
        return not self._parts

    @override
    def cancel(self, job_id: JobId) -> None:
        for job in tuple(self._jobs):
            if job.plan.job_id == job_id:
                self._cancel(job, Status.TIMEOUT)

    @override
    def close(self) -> None:
        self._is_closed = True
        for job in tuple(self._jobs):
            self._cancel(job, Status.CLOSED)
        self._far.close()
        self._near.close()

    @property
    def _is_stuck(self) -> bool:
        """Whether the tier moves something that is too late."""
        now_s = self._clock()
        jobs = (part.job for part in self._parts.values())
        return any(job.is_reported and now_s >= job.deadline_s for job in jobs)

    def _begin_parts(self) -> None:
        """Give the tier as many parts as there are slots for, the oldest plan's first."""
        now_s = self._clock()
        for job in tuple(self._jobs):
            if now_s >= job.deadline_s:
                job.stop()
            while job.may_begin:
                part = self._cut(job)
                if part is None:
                    return
                if job.is_save:
                    self._near.submit_all([part.near_step(range(part.num_blocks))])
                    (gathered,) = self._near.poll()
                    if gathered.status is not Status.OK:
                        self._end(part, gathered)
                        continue
                job.num_in_tier += 1
                self._parts[part.part_id] = part
                self._far.submit(part.far_step())

    def _cut(self, job: _Job) -> _Part | None:
        """Take slots for the next blocks of a plan: half of all at most, so that two parts fit."""
        num_blocks = min(len(self._slots) // 2, job.plan.num_blocks - job.num_begun)
        places = self._ring.take(num_blocks)
        if places is None:
            return None
        part = _Part(next(self._part_ids), job, job.num_begun, self._slots[places])
        job.num_begun += num_blocks
        job.num_open += 1
        return part

    def _take_in(self) -> None:
        """Note what the tier has done; pages are filled after the next parts have begun."""
        for moved in self._far.poll():
            part = self._parts.pop(moved.job_id)
            part.job.num_in_tier -= 1
            if part.job.is_save or part.job.is_reported or not moved.num_blocks:
                self._end(part, moved)
            else:
                # Its blocks count once they are in the pages: the plan may be reported before.
                part.job.stop_at_failure(statuses_of(moved, part.num_blocks))
                self._read.append((part, moved))

    def _fill(self, part: _Part, read: TransferResult) -> None:
        """Fill pages with the blocks that are good, unless it is too late for that."""
        if part.job.is_reported:
            self._end(part, read)
            return
        statuses = statuses_of(read, part.num_blocks)
        good = [at for at, status in enumerate(statuses) if status is Status.OK]
        self._near.submit_all([part.near_step(good)])
        (filled,) = self._near.poll()
        self._end(part, read if filled.status is Status.OK else filled)

    def _end(self, part: _Part, result: TransferResult) -> None:
        """Note how a part ended, and free its slots."""
        job = part.job
        job.num_open -= 1
        if result.num_blocks:
            job.block_bytes = result.num_bytes // result.num_blocks
        job.error = result.error or job.error
        statuses = statuses_of(result, part.num_blocks)
        job.statuses[part.first_block : part.first_block + part.num_blocks] = statuses
        job.stop_at_failure(statuses)
        self._ring.give_back(part.slots - self._slots[0])
        self._report_ended(job)

    def _cancel(self, job: _Job, status: Status) -> None:
        """Report a plan as it stands: what the tier still does for it stays in the slots."""
        job.stop(status)
        for part_id, part in self._parts.items():
            if part.job is job:
                self._far.cancel(part_id)
        self._report(job)

    def _report_late(self) -> None:
        now_s = self._clock()
        for job in tuple(self._jobs):
            if now_s >= job.deadline_s:
                self._cancel(job, Status.TIMEOUT)

    def _report_ended(self, job: _Job) -> None:
        if job.has_begun and not job.num_open and not job.is_reported:
            self._report(job)

    def _report(self, job: _Job) -> None:
        job.is_reported = True
        self._jobs.remove(job)
        result = ended(
            job.plan,
            self._rank,
            job.statuses,
            is_chain=job.stored.is_chain,
            block_bytes=job.block_bytes,
            seconds=self._clock() - job.begin_s,
        )
        error = job.error if result.status is Status.ERROR else ""
        self._results.append(msgspec.structs.replace(result, error=error))

    def _refuse(self, plan: TransferPlan, status: Status, error: str = "") -> None:
        self._results.append(refused(plan, self._rank, status, error))
