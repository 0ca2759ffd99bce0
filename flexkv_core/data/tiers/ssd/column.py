"""One column of a rank's blocks: key -> slot, and the transfers between slots and memory."""

import time
from collections.abc import Callable, Iterable, Sequence

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.format import CellHeader
from flexkv_core.data.tiers.ssd.key_log import KeyLog
from flexkv_core.data.tiers.ssd.runs import CellPlace, Run, RunReader, runs_of
from flexkv_core.data.tiers.ssd.slab import Cell, Slab, max_run_cells
from flexkv_core.data.tiers.ssd.space import Space
from flexkv_core.plan import Status, StoredKey

__all__ = ["ColumnStore"]


class ColumnStore:
    """Cells by key.

    Thread: any. The lock of `space` guards the slot tables and so the keys in them; transfers run
    without a lock, on slots that they have pinned.
    """

    def __init__(
        self,
        space: Space,
        counts: Counts,
        clock: Callable[[], float] = time.monotonic,
        log: KeyLog | None = None,
    ) -> None:
        """Begin with no keys; the scan of the slabs of `space` adds what they hold.

        Args:
            space: Where slots come from.
            counts: Where to count.
            clock: What deadlines are compared with.
            log: Where every change is logged, if other processes follow.
        """
        self.space = space
        self._counts = counts
        self._clock = clock
        self._reader = RunReader(counts, clock)
        self._log = log

    def __contains__(self, key: BlockKey) -> bool:
        """Whether `key` can be read."""
        with self.space.lock:
            return self.space.find(key) is not None

    def read(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]:
        """Fill the cells; MISS where a key is unknown.

        A corrupt cell is erased on the disk: otherwise the next process might take it for the
        block, and its replacement for a second copy. The caller must still forget its key.
        """
        self.space.drop_lost()
        statuses = [Status.MISS] * len(cells)
        runs = self._pin(cells)
        try:
            for run in runs:
                results = self._reader.read(run, deadline_s)
                for position, status in zip(run.positions, results, strict=True):
                    statuses[position] = status
                corrupt = [at for at, status in enumerate(results) if status is Status.CORRUPT]
                self._erase(run, corrupt)
        finally:
            for run in runs:
                self.space.unpin(run.slab, run.slots)
        return statuses

    def write(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]:
        """Store the cells; OK if a key is already stored, ERROR if there is no room."""
        self.space.drop_lost()
        statuses = [Status.OK] * len(cells)
        with self.space.lock:
            missing = [at for at, cell in enumerate(cells) if self.space.find(cell.key) is None]
        while missing:
            status, positions = self._write_some(cells, missing, deadline_s)
            for position in positions:
                statuses[position] = status
            missing = missing[len(positions) :]
        return statuses

    def forget(self, keys: Sequence[BlockKey]) -> None:
        """Make `keys` unfindable; their slots become free once no call uses them."""
        with self.space.lock:
            for key in keys:
                for slab in self.space.slabs:
                    slab.slots.forget(key)
        self._log_changes(keys)

    def recover(
        self, slab: Slab, first_slot: int, headers: Sequence[CellHeader | None]
    ) -> list[StoredKey]:
        """Add what was found in consecutive slots of an adopted slab.

        Returns:
            The keys that can be read from now on. A slot without a header, or whose key is also
            stored elsewhere, becomes free.
        """
        recovered = []
        with self.space.lock:
            still_there = range(first_slot, len(slab.slots))  # the slab may have been cut since
            for slot, header in zip(still_there, headers, strict=False):
                if header is None or self.space.find(header.key):
                    slab.slots.release(slot)
                else:
                    slab.slots.publish(header.key, slot)
                    recovered.append(StoredKey(header.key, header.parent))
        self._log_changes([stored.key for stored in recovered])
        return recovered

    def close(self) -> None:
        """Release the slabs; calls in flight still end normally."""
        if self._log is not None:
            self._log.close()
        self.space.close()

    def _pin(self, cells: Sequence[Cell]) -> list[Run[Slab]]:
        """Pin the slots of all cells that are stored."""
        places = []
        with self.space.lock:
            for position, cell in enumerate(cells):
                if found := self.space.find(cell.key):
                    slab, slot = found
                    slab.slots.pin([slot])
                    places.append(CellPlace(slab, slot, position))
        return runs_of(places, cells)

    def _write_some(
        self, cells: Sequence[Cell], positions: Sequence[int], deadline_s: float | None
    ) -> tuple[Status, Sequence[int]]:
        """Write the first of `positions`, as many as fit one run; return their status and them."""
        if deadline_s is not None and self._clock() > deadline_s:
            return Status.TIMEOUT, positions
        taken = self.space.take(min(len(positions), max_run_cells(cells)))
        if taken is None:
            self._counts.add("ssd_no_room_cells", len(positions))
            return Status.ERROR, positions
        slab, slots = taken
        positions = positions[: len(slots)]
        run = Run(slab, slots, [cells[position] for position in positions], positions)
        return self._write_run(run), positions

    def _write_run(self, run: Run[Slab]) -> Status:
        begin_s = self._clock()
        try:
            run.slab.write(run.slots[0], run.cells)
            self._publish(run)
        except OSError as error:
            self._reader.note_failure(run, error)
            self.space.note_write(run.slab, error)
            self._erase(run, range(len(run.slots)))  # there may be headers without their payloads
            return Status.ERROR
        finally:
            self.space.unpin(run.slab, run.slots)
        self.space.note_write(run.slab, None)
        self._counts.add("ssd_write_bytes", run.num_bytes)
        self._counts.add("ssd_write_seconds", self._clock() - begin_s)
        return Status.OK

    def _erase(self, run: Run[Slab], positions: Iterable[int]) -> None:
        """Erase cells of a run, whose slots are pinned: no other call writes there meanwhile."""
        try:
            for position in positions:
                run.slab.erase(run.slots[position])
        except OSError as error:
            self._reader.note_failure(run, error)

    def _publish(self, run: Run[Slab]) -> None:
        with self.space.lock:
            for slot, cell in zip(run.slots, run.cells, strict=True):
                if self.space.find(cell.key) is None:
                    run.slab.slots.publish(cell.key, slot)
        self._log_changes([cell.key for cell in run.cells])

    def _log_changes(self, keys: Sequence[BlockKey]) -> None:
        """Log for followers that `keys` have changed; call without the lock."""
        if self._log is not None and keys:
            self._log.note(keys)
