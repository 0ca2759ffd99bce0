"""The lane between an engine's pages on a GPU and host slots."""

import time
from collections.abc import Callable, Iterable, Sequence
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


class _Move(NamedTuple):
    """What a plan comes to, once it is known to be possible."""

    plan: TransferPlan
    page_ids: Ids
    first_page: int
    slots: Ids


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

    Plans that are submitted together are one gather and one copy, or one copy and one scatter.

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
        self.submit_all([plan])

    @override
    def submit_all(self, plans: Iterable[TransferPlan]) -> None:
        saves: list[_Move] = []
        loads: list[_Move] = []
        for plan in plans:
            move = self._prepare(plan)
            if isinstance(move, TransferResult):
                self._refused.append(move)
            else:
                (loads if isinstance(plan.target, EnginePages) else saves).append(move)
        # Saves first: the loads wait for all that was queued before, and may fill the same pages.
        if saves:
            self._queue_saves(saves)
        if loads:
            self._queue_loads(loads)

    def hold_compute(self) -> None:
        """Make what the engine queues from now on run after all submitted loads.

        For engines that may give the pages of a load to another request before it has ended.
        """
        if self._last_load is not None:
            self._device.wait(Stream.COMPUTE, self._last_load)

    @override
    def poll(self) -> list[TransferResult]:
        results, self._refused = self._refused, []
        running, self._running = self._running, []
        for copy in running:
            if copy.end.query():
                results.append(self._end(copy))
            else:
                self._running.append(copy)
        return results

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

    def _prepare(self, plan: TransferPlan) -> _Move | TransferResult:
        """Return what to copy, or why nothing can be."""
        if self._closed:
            return refused(plan, self._rank, Status.CLOSED)
        if plan.deadline_s is not None and self._clock() >= plan.deadline_s:
            return refused(plan, self._rank, Status.TIMEOUT)
        match plan.source, plan.target:
            case (EnginePages() as pages, HostSlots() as slots) | (
                HostSlots() as slots,
                EnginePages() as pages,
            ):
                pass
            case _:
                error = "a GPU lane copies between engine pages and host slots only"
                return refused(plan, self._rank, Status.ERROR, error)
        problem = find_slot_problem(plan, slots, self._num_host_slots) or find_page_problem(
            plan, pages, self._limits
        )
        if problem:
            return refused(plan, self._rank, Status.ERROR, problem)
        page_ids = np.asarray(pages.page_ids, np.int64)
        return _Move(plan, page_ids, pages.first_page, np.frombuffer(slots.slots, np.int64))

    def _queue_saves(self, moves: Iterable[_Move]) -> None:
        """Queue one gather and one copy for all that find room in the ring."""
        begin_s = self._clock()
        placed: list[tuple[_Move, Ids]] = []
        for move in moves:
            places = self._ring.take(len(move.slots))
            if places is None:
                self._refused.append(refused(move.plan, self._rank, Status.BUSY))
            else:
                placed.append((move, places))
        if not placed:
            return
        device, all_places = self._device, np.concatenate([places for _, places in placed])
        page_ids = np.concatenate([move.page_ids for move, _ in placed])
        device.gather(page_ids, self._parts_of(all_places))
        device.wait(Stream.OUT, device.record(Stream.COMPUTE))
        device.copy_out(all_places, np.concatenate([move.slots for move, _ in placed]))
        end = device.record(Stream.OUT)
        self._running += [self._copy(move, end, places, begin_s) for move, places in placed]

    def _queue_loads(self, moves: Sequence[_Move]) -> None:
        begin_s = self._clock()
        self._device.wait(Stream.IN, self._device.record(Stream.COMPUTE))
        try:
            self._queue_rounds(moves)
        finally:
            self._last_load = end = self._device.record(Stream.IN)
        nothing_held = self._load_places[:0]
        self._running += [self._copy(move, end, nothing_held, begin_s) for move in moves]

    def _queue_rounds(self, moves: Sequence[_Move]) -> None:
        """Queue a copy and a scatter for as many blocks as staging holds, until all are queued."""
        per_block, num_places = self._limits.pages_per_block, len(self._load_places)
        slots = np.concatenate([move.slots for move in moves])
        page_ids = np.concatenate([move.page_ids for move in moves])
        # Where each page is among the pages of all blocks; not all are wanted.
        begins = np.cumsum([0, *(len(move.slots) * per_block for move in moves)]).tolist()
        positions = np.concatenate(
            [
                np.arange(len(move.page_ids)) + move.first_page + begin
                for move, begin in zip(moves, begins, strict=False)
            ]
        )
        for first in range(0, len(slots), num_places):
            some_slots = slots[first : first + num_places]
            places = self._load_places[: len(some_slots)]
            self._device.copy_in(some_slots, places)
            begin = first * per_block
            ends = np.searchsorted(positions, (begin, begin + len(places) * per_block))
            some = slice(*ends)
            self._device.scatter(self._parts_of(places)[positions[some] - begin], page_ids[some])

    def _copy(self, move: _Move, end: Event, places: Ids, begin_s: float) -> _Copy:
        return _Copy(move.plan, end, places, len(move.page_ids) * self._page_bytes, begin_s)

    def _parts_of(self, places: Ids) -> Ids:
        """Return the parts of whole places, in the order of their pages."""
        per_block = self._limits.pages_per_block
        return (places[:, None] * per_block + np.arange(per_block)).ravel()

    def _end(self, copy: _Copy) -> TransferResult:
        self._ring.give_back(copy.places)
        return done(copy.plan, self._rank, copy.num_bytes, self._clock() - copy.begin_s)
