"""One column that another process of the engine writes: its log followed, its cells read."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.files import OpenFile, SharedFile
from flexkv_core.data.tiers.ssd.key_log import RECORD_BYTES, KeyRecord, LogHeader, unpack_records
from flexkv_core.data.tiers.ssd.runs import CellPlace, RunReader, runs_of
from flexkv_core.data.tiers.ssd.slab import Cell, SlabView
from flexkv_core.plan import Status

__all__ = ["FollowedColumn"]

_MAX_HEADER_BYTES = 1 << 20
_STEP_BYTES = (1 << 20) // RECORD_BYTES * RECORD_BYTES
"""Bytes of a log read at once."""

_RETRY_S = 60.0
"""How long a slab that could not be opened is left alone."""


class FollowedColumn:
    """Cells by key, in the places that their writer's log names.

    A cell is verified by its own header and checksum. One that turns out to be something else was
    most likely overwritten: a miss. It stays known and is not erased, since the slot belongs to the
    writer, which reads the same bytes, erases what is corrupt, and logs the change.

    Thread: any. `_lock` guards the known places; it is held while a log is read, not while cells
    are.
    """

    def __init__(
        self,
        log_paths: Sequence[Path],
        header: LogHeader,
        counts: Counts,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_aligned: bool,
    ) -> None:
        """Know nothing yet.

        Args:
            log_paths: Where the log may be.
            header: The expected one, except for the slabs and what only the writer knows: the name
                of a generation, and whether it is temporary.
            counts: Where to count.
            clock: What deadlines are compared with.
            is_aligned: Whether pieces of cells begin and end on memory pages.
        """
        self._log_paths = log_paths
        self._header = header
        self._is_aligned = is_aligned
        self._clock = clock
        self._reader = RunReader(counts, clock)
        self._lock = threading.Lock()
        self._log: _OpenLog | None = None
        self._slabs: list[SlabView | None] = []
        """By number; None if it was deleted, or could not be opened."""

        self._retry_s = 0.0
        self._places: dict[BlockKey, tuple[int, int]] = {}
        """Numbers of slab and slot."""

    def count_leading(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading `keys` are stored as of now."""
        with self._lock:
            self._catch_up()
            missing = (at for at, key in enumerate(keys) if self._find(key) is None)
            return next(missing, len(keys))

    def read(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]:
        """Fill the cells; MISS if a key is unknown, or its place now holds other bytes."""
        with self._lock:
            places = [
                CellPlace(*found, position)
                for position, cell in enumerate(cells)
                if (found := self._find(cell.key))
            ]
        statuses = [Status.MISS] * len(cells)
        for run in runs_of(places, cells):
            results = self._reader.read(run, deadline_s)
            for position, status in zip(run.positions, results, strict=True):
                statuses[position] = Status.MISS if status is Status.CORRUPT else status
        return statuses

    def _catch_up(self) -> None:
        """Apply what the writer has logged since the last call; under the lock."""
        if self._log is None or not self._log.is_current:
            self._open()
        if self._log is not None:
            self._check_slabs(self._log)
            for record in self._log.new_records():
                self._apply(record)

    def _open(self) -> None:
        """Switch to the current log, and forget all others."""
        logs = filter(None, map(_OpenLog.open, self._log_paths))
        self._log = next((log for log in logs if self._is_writers_log(log.header)), None)
        self._places = {}
        self._slabs = [] if self._log is None else [None] * len(self._log.header.slabs)
        self._retry_s = 0.0

    def _is_writers_log(self, found: LogHeader) -> bool:
        """Return whether a log is our writer's, and for the current weights."""
        expected = msgspec.structs.replace(
            self._header.superblock,
            identity=found.superblock.identity,
            is_temporary=found.superblock.is_temporary,
            generation=found.superblock.generation,
        )
        return found == msgspec.structs.replace(
            self._header, superblock=expected, slabs=found.slabs
        )

    def _apply(self, record: KeyRecord) -> None:
        if record.slab is None or record.slab >= len(self._slabs):
            self._places.pop(record.key, None)
        else:
            self._places[record.key] = record.slab, record.slot

    def _find(self, key: BlockKey) -> tuple[SlabView, int] | None:
        """Return where `key` can be read; under the lock."""
        number, slot = self._places.get(key, (None, 0))
        slab = None if number is None else self._slabs[number]
        return None if slab is None else (slab, slot)

    def _check_slabs(self, log: "_OpenLog") -> None:
        """Drop slabs that were deleted, and try now and then to open those that are not open.

        While open, deleted ones would still take room on the disk.
        """
        self._slabs = [None if slab is None or slab.is_lost else slab for slab in self._slabs]
        if None in self._slabs and self._clock() >= self._retry_s:
            self._retry_s = self._clock() + _RETRY_S
            self._slabs = [
                slab or log.open_slab(number, is_aligned=self._is_aligned)
                for number, slab in enumerate(self._slabs)
            ]


class _OpenLog:
    """One log, read while it grows."""

    def __init__(self, path: Path, file: SharedFile, header: LogHeader, position: int) -> None:
        """Continue at `position`, after the header. Use `open`."""
        self.header = header
        self._path = path
        self._file = file
        self._position = position

    @classmethod
    def open(cls, path: Path) -> "_OpenLog | None":
        """Open a log; None if it is missing or cannot be read."""
        try:
            file = SharedFile.open(path)
            found = LogHeader.unpack(_read(file, 0, min(_MAX_HEADER_BYTES, file.size)))
        except OSError:
            return None
        return cls(path, file, *found) if found else None

    @property
    def is_current(self) -> bool:
        """Whether the log has not been replaced or truncated, as far as can be seen."""
        try:
            return self._file.is_named(self._path) and self._file.size >= self._position
        except OSError:  # "stale" on a network file system
            return False

    def open_slab(self, number: int, *, is_aligned: bool) -> SlabView | None:
        """Open a slab that records name; None if it is gone or cannot be opened now."""
        path = Path(self.header.slabs[number])
        try:
            return SlabView.open(path, self.header.superblock, is_aligned=is_aligned)
        except OSError:
            return None

    def new_records(self) -> Iterator[KeyRecord]:
        """Yield what has been written since the last call; what cannot be read is retried later."""
        content = self._step()
        while content:
            yield from unpack_records(content)
            content = self._step()

    def _step(self) -> bytes:
        """Return the next complete records."""
        try:
            # Below 0 if the writer has cut it since `is_current`, because it ends.
            num_left = max(0, self._file.size - self._position)
            content = _read(self._file, self._position, min(_STEP_BYTES, num_left))
        except OSError:
            return b""
        content = content[: len(content) // RECORD_BYTES * RECORD_BYTES]
        self._position += len(content)
        return content


def _read(file: OpenFile, offset: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    return bytes(buffer[: file.read([memoryview(buffer)], offset)])
