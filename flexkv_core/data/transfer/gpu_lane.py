"""The lane between an engine's pages on a GPU and host slots."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from flexkv_core.data.transfer.device import Device, Event, Ids, Stream
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.results import done, refused
from flexkv_core.data.transfer.segments import Limits, find_page_problem, find_slot_problem
from flexkv_core.data.transfer.staging import StagingRing
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan, TransferResult

__all__ = ["GpuLane"]


class _Copy(NamedTuple):
    """A plan in flight on the device."""

    plan: TransferPlan
    end: Event
    places: Ids
    """Staging it holds of the ring; empty for a load."""

    num_bytes: int
    begin_s: float


class GpuLane(Lane):
    """Queues every copy in `submit` and lets the device work on it beside the forward pass.

    - A save gathers on the engine's own stream: after the pass that computes its pages and before
      the next one that may reuse them, so nothing else has to protect them. The side stream then
      copies out of a ring in device memory. A save that finds no room in the ring is refused with
      BUSY: the forward pass never waits. Plan no more than `save_places` blocks at a time.
    - A load copies into the other part of staging, and scatters from it after everything that the
      engine had queued: its pages may have belonged to another request a moment ago. A load larger
      than that part goes through it in several rounds, which the stream itself keeps in order.

    Queued work cannot be taken back. So the deadline is checked before the first byte, and a plan
    that was begun is reported when the device has finished it, however late: until then its pages
    and slots are not given to any other request.
    """

    def __init__(
        self,
        rank: int,
        device: Device,
        limits: Limits,
        *,
        num_host_slots: int,
        block_bytes: int,
        load_places: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Divide the device's staging.

        Args:
            rank: Whose results these are.
            device: Has the pages and staging.
            limits: Bounds of ids.
            num_host_slots: Slots of the host pool.
            block_bytes: This rank's share of a block.
            load_places: Places of staging for loads, at least 1; the others are for saves.
            clock: What deadlines are compared with.
        """
        self.save_places = device.num_places - load_places
        self._rank = rank
        self._device = device
        self._limits = limits
        self._num_host_slots = num_host_slots
        self._page_bytes = block_bytes // limits.pages_per_block
        self._load_places = np.arange(self.save_places, device.num_places)
        self._ring = StagingRing(self.save_places)
        self._clock = clock
        self._running: list[_Copy] = []
        self._last_load: Event | None = None
        """The end of the newest load in its stream, even if only part of it could be queued."""

        self._refused: list[TransferResult] = []
        self._closed = False

    @override
    def submit(self, plan: TransferPlan) -> None:
        status, error = self._begin(plan)
        if status is not Status.OK:
            self._refused.append(refused(plan, self._rank, status, error))

    def hold_compute(self) -> None:
        """Make what the engine queues from now on run after all submitted loads.

        For engines that may give the pages of a load to another request before it has ended.
        """
        if self._last_load is not None:
            self._device.wait(Stream.COMPUTE, self._last_load)

    @override
    def poll(self) -> list[TransferResult]:
        results, self._refused = self._refused, []
        ended = [copy for copy in self._running if copy.end.query()]
        self._running = [copy for copy in self._running if copy not in ended]
        return results + [self._end(copy) for copy in ended]

    @override
    def drain(self, timeout_s: float) -> bool:
        end_s = self._clock() + timeout_s
        ends = [copy.end for copy in self._running]
        if self._last_load is not None:
            ends.append(self._last_load)
        return all(self._device.wait_for(end, max(0.0, end_s - self._clock())) for end in ends)

    @override
    def close(self) -> None:
        self._closed = True

    def _begin(self, plan: TransferPlan) -> tuple[Status, str]:
        """Queue the copies of `plan`; return OK, or a status and an error."""
        if self._closed:
            return Status.CLOSED, ""
        if plan.deadline_s is not None and self._clock() >= plan.deadline_s:
            return Status.TIMEOUT, ""
        match plan.source, plan.target:
            case EnginePages() as pages, HostSlots() as slots:
                queue = self._queue_save
            case HostSlots() as slots, EnginePages() as pages:
                queue = self._queue_load
            case _:
                return Status.ERROR, "a GPU lane copies between engine pages and host slots only"
        if problem := self._find_problem(plan, pages, slots):
            return Status.ERROR, problem
        return queue(plan, pages, np.frombuffer(slots.slots, np.int64)), ""

    def _find_problem(self, plan: TransferPlan, pages: EnginePages, slots: HostSlots) -> str:
        return find_slot_problem(plan, slots, self._num_host_slots) or find_page_problem(
            plan, pages, self._limits
        )

    def _queue_save(self, plan: TransferPlan, pages: EnginePages, slots: Ids) -> Status:
        begin_s = self._clock()
        places = self._ring.take(len(slots))
        if places is None:
            return Status.BUSY
        device = self._device
        device.gather(np.asarray(pages.page_ids, np.int64), self._parts_of(places))
        device.wait(Stream.OUT, device.record(Stream.COMPUTE))
        device.copy_out(places, slots)
        self._track(plan, pages, device.record(Stream.OUT), places, begin_s)
        return Status.OK

    def _queue_load(self, plan: TransferPlan, pages: EnginePages, slots: Ids) -> Status:
        begin_s = self._clock()
        self._device.wait(Stream.IN, self._device.record(Stream.COMPUTE))
        try:
            self._queue_rounds(pages, slots)
        finally:
            self._last_load = end = self._device.record(Stream.IN)
        self._track(plan, pages, end, self._load_places[:0], begin_s)
        return Status.OK

    def _queue_rounds(self, pages: EnginePages, slots: Ids) -> None:
        page_ids = np.asarray(pages.page_ids, np.int64)
        begin = -pages.first_page
        for first in range(0, len(slots), len(self._load_places)):
            some_slots = slots[first : first + len(self._load_places)]
            places = self._load_places[: len(some_slots)]
            self._device.copy_in(some_slots, places)
            parts = self._parts_of(places)
            end = begin + len(parts)
            some_pages = page_ids[max(begin, 0) : end]
            skipped = max(-begin, 0)
            self._device.scatter(parts[skipped : skipped + len(some_pages)], some_pages)
            begin = end

    def _track(
        self, plan: TransferPlan, pages: EnginePages, end: Event, places: Ids, begin_s: float
    ) -> None:
        num_bytes = len(pages.page_ids) * self._page_bytes
        self._running.append(_Copy(plan, end, places, num_bytes, begin_s))

    def _parts_of(self, places: Ids) -> Ids:
        """Return the parts of whole places, in the order of their pages."""
        per_block = self._limits.pages_per_block
        return (places[:, None] * per_block + np.arange(per_block)).ravel()

    def _end(self, copy: _Copy) -> TransferResult:
        self._ring.give_back(copy.places)
        return done(copy.plan, self._rank, copy.num_bytes, self._clock() - copy.begin_s)
