"""One column of a rank's blocks: key -> slot, and the transfers between slots and host memory."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flexkv_core.plan import Status, StoredKey
from flexkv_core.tiers.ssd.counts import Counts
from flexkv_core.tiers.ssd.format import CellHeader
from flexkv_core.tiers.ssd.slab import Cell, Slab, max_run_cells
from flexkv_core.tiers.ssd.space import Space
from flexkv_core.types import BlockKey

__all__ = ["ColumnStore"]

logger = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Where one cell of a call lies."""

    slab: Slab
    slot: int
    position: int


@dataclass(frozen=True, slots=True)
class _Run:
    """Cells of a call that lie in consecutive slots: one transfer."""

    slab: Slab
    slots: Sequence[int]
    cells: Sequence[Cell]
    positions: Sequence[int]
    """Where the cells stand in the call."""

    @property
    def num_bytes(self) -> int:
        """What the transfer moves."""
        return len(self.slots) * self.slab.slot_bytes


class ColumnStore:
    """Cells by key.

    Thread: any. The lock of `space` guards the slot tables and so the keys in them; transfers run
    without a lock, on slots that they have pinned.
    """

    def __init__(
        self, space: Space, counts: Counts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with no keys; whoever scans the slabs of `space` adds what they hold."""
        self.space = space
        self._counts = counts
        self._clock = clock
        self._has_failed = False

    def __contains__(self, key: BlockKey) -> bool:
        """Whether `key` can be read."""
        with self.space.lock:
            return self._find(key) is not None

    def read(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]:
        """Fill the cells; MISS where a key is unknown."""
        self.space.drop_lost()
        statuses = [Status.MISS] * len(cells)
        runs = self._pin(cells)
        try:
            for run in runs:
                results = self._read_run(run, deadline_s)
                for position, status in zip(run.positions, results, strict=True):
                    statuses[position] = status
        finally:
            for run in runs:
                self.space.leave(run.slab, run.slots)
        return statuses

    def write(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]:
        """Store the cells; OK where a key is there already, ERROR where there is no room."""
        self.space.drop_lost()
        statuses = [Status.OK] * len(cells)
        with self.space.lock:
            missing = [at for at, cell in enumerate(cells) if self._find(cell.key) is None]
        while missing:
            status, positions = self._write_some(cells, missing, deadline_s)
            for position in positions:
                statuses[position] = status
            missing = missing[len(positions) :]
        return statuses

    def forget(self, keys: Sequence[BlockKey]) -> None:
        """Let nobody find `keys`; their slots are free once no call uses them."""
        with self.space.lock:
            for key in keys:
                for slab in self.space.slabs:
                    slab.slots.forget(key)

    def learn(
        self, slab: Slab, first_slot: int, headers: Sequence[CellHeader | None]
    ) -> list[StoredKey]:
        """Take in what was found in consecutive slots of a slab that was adopted.

        Returns:
            The keys that can be read from now on. A slot without a header, or whose key lies
            elsewhere too, is free.
        """
        learned = []
        with self.space.lock:
            still_there = range(first_slot, len(slab.slots))  # the end may have been cut off since
            for slot, header in zip(still_there, headers, strict=False):
                if header is None or self._find(header.key):
                    slab.slots.release(slot)
                else:
                    slab.slots.publish(header.key, slot)
                    learned.append(StoredKey(header.key, header.parent))
        return learned

    def _find(self, key: BlockKey) -> tuple[Slab, int] | None:
        for slab in self.space.slabs:
            slot = slab.slots.find(key)
            if slot is not None:
                return slab, slot
        return None

    def _pin(self, cells: Sequence[Cell]) -> list[_Run]:
        """Pin the slots of all cells that are there."""
        places = []
        with self.space.lock:
            for position, cell in enumerate(cells):
                if found := self._find(cell.key):
                    slab, slot = found
                    slab.slots.pin([slot])
                    places.append(_Place(slab, slot, position))
        return _runs(places, cells)

    def _read_run(self, run: _Run, deadline_s: float | None) -> list[Status]:
        begin_s = self._clock()
        if deadline_s is not None and begin_s > deadline_s:
            return [Status.TIMEOUT] * len(run.cells)
        try:
            statuses = run.slab.read(run.slots[0], run.cells)
        except OSError as error:
            self._note_failure(run, error)
            return [Status.ERROR] * len(run.cells)
        self._counts.add("ssd_read_bytes", run.num_bytes)
        self._counts.add("ssd_read_seconds", self._clock() - begin_s)
        return statuses

    def _write_some(
        self, cells: Sequence[Cell], positions: Sequence[int], deadline_s: float | None
    ) -> tuple[Status, Sequence[int]]:
        """Write the first of `positions`, as many as one run takes; return how and how many."""
        if deadline_s is not None and self._clock() > deadline_s:
            return Status.TIMEOUT, positions
        taken = self.space.take(min(len(positions), max_run_cells(cells)))
        if taken is None:
            return Status.ERROR, positions
        slab, slots = taken
        positions = positions[: len(slots)]
        run = _Run(slab, slots, [cells[position] for position in positions], positions)
        return self._write_run(run), positions

    def _write_run(self, run: _Run) -> Status:
        begin_s = self._clock()
        try:
            run.slab.write(run.slots[0], run.cells)
            self._publish(run)
        except OSError as error:
            self._note_failure(run, error)
            return Status.ERROR
        finally:
            self.space.leave(run.slab, run.slots)
        self._counts.add("ssd_write_bytes", run.num_bytes)
        self._counts.add("ssd_write_seconds", self._clock() - begin_s)
        return Status.OK

    def _publish(self, run: _Run) -> None:
        with self.space.lock:
            for slot, cell in zip(run.slots, run.cells, strict=True):
                if self._find(cell.key) is None:
                    run.slab.slots.publish(cell.key, slot)

    def _note_failure(self, run: _Run, error: OSError) -> None:
        self._counts.add("ssd_io_errors")
        if not self._has_failed:
            logger.warning("ssd.io_failed path=%s: %s", run.slab.path, error.strerror)
        self._has_failed = True


def _runs(places: Sequence[_Place], cells: Sequence[Cell]) -> list[_Run]:
    """Cut places into runs of consecutive slots."""
    groups: list[list[_Place]] = []
    most = max_run_cells(cells)
    for place in sorted(places, key=lambda place: (id(place.slab), place.slot)):
        if groups and len(groups[-1]) < most and _continues(groups[-1][-1], place):
            groups[-1].append(place)
        else:
            groups.append([place])
    return [_run_of(group, cells) for group in groups]


def _continues(last: _Place, place: _Place) -> bool:
    return place.slab is last.slab and place.slot == last.slot + 1


def _run_of(group: Sequence[_Place], cells: Sequence[Cell]) -> _Run:
    positions = [place.position for place in group]
    slots = [place.slot for place in group]
    return _Run(group[0].slab, slots, [cells[position] for position in positions], positions)
