"""Finding the blocks of earlier processes: a thread reads the headers of adopted slabs."""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from flexkv_core.plan import StoredKey
from flexkv_core.tiers.ssd.column import ColumnStore
from flexkv_core.tiers.ssd.counts import Counts
from flexkv_core.tiers.ssd.format import PAGE_BYTES, CellHeader
from flexkv_core.tiers.ssd.slab import Slab
from flexkv_core.types import BlockKey

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

_BATCH_SLOTS = 256
"""Headers that the disk looks for at once."""

_STOP_WAIT_S = 1.0


class Recovery:
    """Tells columns what their slabs hold, and lists the blocks that all columns hold.

    A header is believed if its checksum is right and it is one of its column; payloads are
    verified when they are read. What only some columns hold is forgotten in the end.

    Thread: any; a thread of its own does the work.
    """

    def __init__(self, columns: Sequence[ColumnStore], counts: Counts) -> None:
        """Begin with the slabs that the columns have now.

        Raises:
            OSError: The process has too many files open.
        """
        self._columns = columns
        self._counts = counts
        self._found: deque[StoredKey] = deque()
        self._partial: dict[BlockKey, StoredKey] = {}
        self._stop = threading.Event()
        scans = [(column, _Scan(slab, counts)) for column in columns for slab in column.space.slabs]
        self._thread = threading.Thread(
            target=self._run, args=(scans,), name="flexkv-ssd-scan", daemon=True
        )
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to take, ever."""
        return not self._thread.is_alive() and not self._found

    def take(self, limit: int) -> list[StoredKey]:
        """Return up to `limit` blocks that were found and are still there, each once."""
        taken = [self._found.popleft() for _ in range(min(limit, len(self._found)))]
        return [stored for stored in taken if self._is_whole(stored)]

    def join(self) -> None:
        """Wait until all headers have been read."""
        self._thread.join()

    def stop(self) -> None:
        """Read no more headers, and have nothing more to take."""
        self._stop.set()
        self._thread.join(_STOP_WAIT_S)
        self._found.clear()

    def _run(self, scans: Sequence[tuple[ColumnStore, "_Scan"]]) -> None:
        for column, scan in scans:
            for first_slot, headers in scan.batches():
                if self._stop.is_set():
                    break
                for stored in column.learn(scan.slab, first_slot, headers):
                    self._note(stored)
            scan.close()
        if not self._stop.is_set():
            self._end()

    def _note(self, stored: StoredKey) -> None:
        if self._is_whole(stored):
            self._partial.pop(stored.key, None)
            self._report(stored)
        else:
            self._partial[stored.key] = stored

    def _end(self) -> None:
        """Look once more at what some columns lacked: a write may have added it."""
        for stored in self._partial.values():
            if self._is_whole(stored):
                self._report(stored)
            else:
                for column in self._columns:
                    column.forget([stored.key])
        self._partial.clear()

    def _report(self, stored: StoredKey) -> None:
        self._found.append(stored)
        self._counts.add("ssd_recovered_blocks")

    def _is_whole(self, stored: StoredKey) -> bool:
        return all(stored.key in column for column in self._columns)


class _Scan:
    """Reads the headers of one slab; those that are added later are none of its business."""

    def __init__(self, slab: Slab, counts: Counts) -> None:
        self.slab = slab
        self._slots = range(len(slab.slots))
        self._file = slab.open_headers()
        self._counts = counts

    def batches(self) -> Iterator[tuple[int, list[CellHeader | None]]]:
        """Yield the first slot and the headers of a batch while the disk fetches the next."""
        starts = self._slots[::_BATCH_SLOTS]
        batches = [self._slots[start : start + _BATCH_SLOTS] for start in starts]
        for batch, following in pairwise([range(0), *batches, range(0)]):
            for slot in following:
                self._file.prefetch(self.slab.size_with(slot))
            if batch:
                yield batch.start, [self._header(slot) for slot in batch]
                self._file.drop(self.slab.size_with(batch.start), len(batch) * self.slab.slot_bytes)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _header(self, slot: int) -> CellHeader | None:
        try:
            page = self._file.read(self.slab.size_with(slot), PAGE_BYTES)
        except OSError:
            self._counts.add("ssd_io_errors")
            return None
        return self.slab.header_of(page)
