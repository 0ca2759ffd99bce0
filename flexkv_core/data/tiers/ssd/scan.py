"""Finds the blocks of earlier processes: a thread reads the headers of adopted slabs."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise, takewhile

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.ssd.column import ColumnStore
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.files import HeaderFile
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, CellHeader
from flexkv_core.data.tiers.ssd.slab import Slab
from flexkv_core.plan import StoredKey

__all__ = ["SlabScan"]

logger = logging.getLogger(__name__)

_BATCH_SLOTS = 256
"""Headers that the disk fetches at once."""

_STOP_WAIT_S = 1.0


class SlabScan:
    """Adds to columns what their slabs hold, and lists the blocks that all columns hold.

    A header is trusted if its checksum is right and it is of its column; payloads are verified when
    they are read. Blocks that only some columns hold are forgotten in the end, but stay on the
    disk, as second copies do: they may be complete for another degree of parallelism, and of two
    copies either may be the good one.

    Thread: any; a thread of its own does the work.
    """

    def __init__(self, columns: Sequence[ColumnStore], counts: Counts) -> None:
        """Begin to scan the slabs that the columns have now."""
        self._columns = columns
        self._counts = counts
        self._found: deque[StoredKey] = deque()
        self._partial: dict[BlockKey, StoredKey] = {}
        self._stop = threading.Event()
        scans = [
            (column, _Scan(slab, counts, self._stop))
            for column in columns
            for slab in column.space.slabs
        ]
        self._thread = threading.Thread(
            target=self._run, args=(scans,), name="flexkv-ssd-scan", daemon=True
        )
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether there will be nothing more to take."""
        return not self._thread.is_alive() and not self._found

    def take(self, limit: int) -> list[StoredKey]:
        """Return up to `limit` blocks that were found and are still stored, each once."""
        taken = [self._found.popleft() for _ in range(min(limit, len(self._found)))]
        return [stored for stored in taken if self._is_kept(stored)]

    def join(self) -> None:
        """Wait until all headers have been read."""
        self._thread.join()

    def stop(self) -> None:
        """Stop reading headers, and forget what was not taken."""
        self._stop.set()
        self._thread.join(_STOP_WAIT_S)
        self._found.clear()

    def _run(self, scans: Sequence[tuple[ColumnStore, "_Scan"]]) -> None:
        for column, scan in scans:
            if not self._stop.is_set():
                self._scan(column, scan)
        if not self._stop.is_set():
            self._end()

    def _scan(self, column: ColumnStore, scan: "_Scan") -> None:
        """Read one slab; retire it if its headers cannot be read."""
        try:
            with closing(HeaderFile(scan.slab.path)) as file:
                for first_slot, headers in scan.batches(file):
                    if self._stop.is_set():
                        return
                    for stored in column.recover(scan.slab, first_slot, headers):
                        self._note(stored)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", "no memory")
            logger.warning("ssd.not_recovered path=%s: %s", scan.slab.path, reason)
            column.space.retire([scan.slab])

    def _note(self, stored: StoredKey) -> None:
        if self._is_whole(stored):
            self._partial.pop(stored.key, None)
            self._report(stored)
        else:
            self._partial[stored.key] = stored

    def _end(self) -> None:
        """Check again the blocks that some columns lacked: a write may have added them."""
        for stored in self._partial.values():
            if self._is_kept(stored):
                self._report(stored)
        self._partial.clear()

    def _report(self, stored: StoredKey) -> None:
        self._found.append(stored)
        self._counts.add("ssd_recovered_blocks")

    def _is_kept(self, stored: StoredKey) -> bool:
        """Return whether a block is whole; forget it where not: a slab may have been lost."""
        is_whole = self._is_whole(stored)
        for column in () if is_whole else self._columns:
            column.forget([stored.key])
        return is_whole

    def _is_whole(self, stored: StoredKey) -> bool:
        return all(stored.key in column for column in self._columns)


class _Scan:
    """The headers of one slab, as of now: slots added later are not read."""

    def __init__(self, slab: Slab, counts: Counts, stop: threading.Event) -> None:
        self.slab = slab
        self._slots = range(len(slab.slots))
        self._counts = counts
        self._stop = stop

    def batches(self, file: HeaderFile) -> Iterator[tuple[int, list[CellHeader | None]]]:
        """Yield the first slot and the headers of a batch while the disk fetches the next.

        A batch ends early once the scan is stopped: a slow disk takes minutes for a whole one.
        """
        offset_of = self.slab.size_with
        starts = self._slots[::_BATCH_SLOTS]
        batches = [self._slots[start : start + _BATCH_SLOTS] for start in starts]
        for batch, following in pairwise([range(0), *batches, range(0)]):
            for slot in self._until_stopped(following):
                file.prefetch(offset_of(slot))
            if batch:
                headers = [
                    self._header(file, offset_of(slot)) for slot in self._until_stopped(batch)
                ]
                yield batch.start, headers
                file.drop(offset_of(batch.start), len(batch) * self.slab.slot_bytes)

    def _until_stopped(self, slots: range) -> Iterator[int]:
        return takewhile(lambda _: not self._stop.is_set(), slots)

    def _header(self, file: HeaderFile, offset: int) -> CellHeader | None:
        """Return a header; None if the disk cannot read it, as for an empty slot."""
        try:
            page = file.read(offset, PAGE_BYTES)
        except OSError:
            self._counts.add("ssd_io_errors")
            return None
        return self.slab.header_of(page)
