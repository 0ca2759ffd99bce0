"""Adjacent cells of a call: read by one transfer, timed and counted."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.slab import Cell, SlabView, max_run_cells
from flexkv_core.plan import Status

__all__ = ["CellPlace", "Run", "RunReader", "runs_of"]

logger = logging.getLogger(__name__)

_S = TypeVar("_S", bound=SlabView)


@dataclass(frozen=True, slots=True)
class CellPlace(Generic[_S]):
    """Where one cell of a call is stored."""

    slab: _S
    slot: int
    position: int
    """Index of the cell in the call."""


@dataclass(frozen=True, slots=True)
class Run(Generic[_S]):
    """Cells of a call in consecutive slots: one transfer."""

    slab: _S
    slots: Sequence[int]
    cells: Sequence[Cell]
    positions: Sequence[int]
    """Indices of the cells in the call."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the transfer moves."""
        return len(self.slots) * self.slab.slot_bytes


class RunReader:
    """Reads runs of one column.

    Thread: any.
    """

    def __init__(self, counts: Counts, clock: Callable[[], float]) -> None:
        """Count in `counts`; deadlines are compared with `clock`."""
        self._counts = counts
        self._clock = clock
        self._has_failed = False

    def read(self, run: Run[Any], deadline_s: float | None) -> list[Status]:
        """Fill the cells of a run; return one status per cell."""
        begin_s = self._clock()
        if deadline_s is not None and begin_s > deadline_s:
            return [Status.TIMEOUT] * len(run.cells)
        try:
            statuses: list[Status] = run.slab.read(run.slots[0], run.cells)
        except OSError as error:
            self.note_failure(run, error)
            return [Status.ERROR] * len(run.cells)
        self._counts.add("ssd_read_bytes", run.num_bytes)
        self._counts.add("ssd_read_seconds", self._clock() - begin_s)
        return statuses

    def note_failure(self, run: Run[Any], error: OSError) -> None:
        """Count that a run could not be moved, and log the first time."""
        self._counts.add("ssd_io_errors")
        if not self._has_failed:
            logger.warning("ssd.io_failed path=%s: %s", run.slab.path, error.strerror)
        self._has_failed = True


def runs_of(places: Sequence[CellPlace[_S]], cells: Sequence[Cell]) -> list[Run[_S]]:
    """Cut places into runs of consecutive slots."""
    groups: list[list[CellPlace[_S]]] = []
    most = max_run_cells(cells)
    for place in sorted(places, key=lambda place: (id(place.slab), place.slot)):
        if groups and len(groups[-1]) < most and _continues(groups[-1][-1], place):
            groups[-1].append(place)
        else:
            groups.append([place])
    return [_run_of(group, cells) for group in groups]


def _continues(last: CellPlace[_S], place: CellPlace[_S]) -> bool:
    return place.slab is last.slab and place.slot == last.slot + 1


def _run_of(group: Sequence[CellPlace[_S]], cells: Sequence[Cell]) -> Run[_S]:
    positions = [place.position for place in group]
    slots = [place.slot for place in group]
    return Run(group[0].slab, slots, [cells[position] for position in positions], positions)
