"""One slab: a locked file of equal slots, each with room for one cell."""

import logging
import mmap
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.memory import BlockMemory, cut
from flexkv_core.data.tiers.ssd.files import OpenFile, SharedFile, SlabFile
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    CellHeader,
    Superblock,
    checksum,
    slot_bytes,
)
from flexkv_core.data.tiers.ssd.slots import SlotTable
from flexkv_core.plan import Status

__all__ = ["Cell", "Slab", "SlabView", "cells_of", "max_run_cells", "read_superblock"]

logger = logging.getLogger(__name__)

_MAX_RUN_CELLS = 256
_MAX_BUFFERS = 1024
"""The most that Linux takes in one call."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A block's part in one column, and where it is in memory."""

    key: BlockKey
    parent: BlockKey | None
    pieces: Sequence[memoryview]

    def __len__(self) -> int:
        """Count its bytes."""
        return sum(map(len, self.pieces))


def cells_of(
    blocks: Sequence[TierBlock], memory: BlockMemory, column: int, cell_bytes: int
) -> list[Cell]:
    """Return the cells of `blocks` in one column; a block's columns follow one another."""
    first = column * cell_bytes
    return [
        Cell(block.key, block.parent, cut(memory.pieces(block.slot), first, cell_bytes))
        for block in blocks
    ]


class _HeaderPages(threading.local):
    """A thread's own buffers for the headers of one call; page-aligned, as O_DIRECT requires."""

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, (_MAX_RUN_CELLS + 1) * PAGE_BYTES))
        starts = range(0, len(memory), PAGE_BYTES)
        *self.pages, self.padding = (memory[start : start + PAGE_BYTES] for start in starts)


_headers = _HeaderPages()
_EMPTY_PAGE = memoryview(mmap.mmap(-1, PAGE_BYTES))
"""Page-aligned, as O_DIRECT requires; never written."""


def max_run_cells(cells: Sequence[Cell]) -> int:
    """Return how many of these equal cells one call of `Slab.read` or `write` takes."""
    num_buffers = 2 + max((len(cell.pieces) for cell in cells), default=1)  # header and padding
    return min(_MAX_RUN_CELLS, _MAX_BUFFERS // num_buffers)


def read_superblock(file: SlabFile) -> Superblock | None:
    """Return a slab's superblock; None if it is invalid or cannot be read."""
    page = bytearray(PAGE_BYTES)
    try:
        file.read([memoryview(page)], 0)
    except OSError:
        return None
    return Superblock.unpack(bytes(page))


class SlabView:
    """The cells of an open slab, read and verified.

    Thread: any, several at once.
    """

    def __init__(
        self, file: OpenFile, path: Path, superblock: Superblock, *, is_aligned: bool
    ) -> None:
        """Read `file`, which is at `path`, with direct I/O if the file system and the cells allow.

        Args:
            file: Stays open as long as this is used.
            path: Its name.
            superblock: Its superblock.
            is_aligned: Whether pieces of cells begin and end on memory pages.
        """
        self.path = path
        self.folder = path.parent
        self.slot_bytes = slot_bytes(superblock.cell_bytes)
        self._reader = file
        self._identity = bytes.fromhex(superblock.identity)
        self._cell_bytes = superblock.cell_bytes
        self._padding_bytes = self.slot_bytes - PAGE_BYTES - superblock.cell_bytes
        if is_aligned and superblock.cell_bytes % PAGE_BYTES == 0:
            file.make_direct()

    @classmethod
    def open(cls, path: Path, superblock: Superblock, *, is_aligned: bool) -> Self:
        """Open a slab that another process writes; it is closed with its last user.

        Raises:
            OSError: It cannot be opened.
        """
        return cls(SharedFile.open(path), path, superblock, is_aligned=is_aligned)

    @property
    def is_lost(self) -> bool:
        """Whether the file has been deleted."""
        return self._reader.is_unlinked

    def size_with(self, num_slots: int) -> int:
        """Return the size of a file with `num_slots` slots."""
        return PAGE_BYTES + num_slots * self.slot_bytes

    def read(self, first_slot: int, cells: Sequence[Cell]) -> list[Status]:
        """Fill the cells from consecutive slots: OK, or CORRUPT if it is anything else.

        Raises:
            OSError: Nothing is known about any cell.
        """
        pages = _headers.pages[: len(cells)]
        num_bytes = self._reader.read(self._buffers(pages, cells), self.size_with(first_slot))
        num_whole = (num_bytes + self._padding_bytes) // self.slot_bytes
        return [
            Status.OK if index < num_whole and self._is_valid(page, cell) else Status.CORRUPT
            for index, (page, cell) in enumerate(zip(pages, cells, strict=True))
        ]

    def header_of(self, page: bytes | memoryview) -> CellHeader | None:
        """Return the header at the beginning of `page`; None if there is none of this column."""
        header = CellHeader.unpack(page)
        if header is None or header.identity != self._identity:
            return None
        return header if header.payload_bytes == self._cell_bytes else None

    def _buffers(self, pages: Sequence[memoryview], cells: Sequence[Cell]) -> list[memoryview]:
        padding = _headers.padding[: self._padding_bytes]
        return [
            buffer
            for page, cell in zip(pages, cells, strict=True)
            for buffer in (page, *cell.pieces, padding)
            if len(buffer)
        ]

    def _is_valid(self, page: memoryview, cell: Cell) -> bool:
        header = self.header_of(page)
        return (
            header is not None
            and header.key == cell.key
            and header.payload_checksum == checksum(*cell.pieces)
        )


class Slab(SlabView):
    """A file of slots that this process has locked.

    Thread: `read`, `write` and `erase` any, several at once, on slots that are pinned in `slots`;
    `resize` one at a time; `slots` and `is_retired` belong to the column, whose lock guards them.
    """

    def __init__(
        self,
        file: SlabFile,
        path: Path,
        superblock: Superblock,
        num_slots: int,
        *,
        is_aligned: bool,
    ) -> None:
        """Own `file`. Use `create` or `adopt`."""
        super().__init__(file, path, superblock, is_aligned=is_aligned)
        self.size = file.size
        self.slots = SlotTable(num_slots)
        self.is_retired = False
        self._file = file
        logger.info("ssd.slab_opened path=%s slots=%d direct=%s", path, num_slots, file.is_direct)

    @classmethod
    def create(
        cls, path: Path, superblock: Superblock, *, is_aligned: bool = True
    ) -> "Slab | None":
        """Make a slab without slots; None if the name is taken.

        Args:
            path: Its name.
            superblock: Its superblock.
            is_aligned: Whether pieces of cells begin and end on memory pages.

        Raises:
            OSError: The file system refuses.
        """
        file = SlabFile.create(path)
        if file is None:
            return None
        with ExitStack() as undo:
            undo.callback(file.close)
            undo.callback(file.unlink, path)
            file.write([memoryview(superblock.pack())], 0)
            slab = cls(file, path, superblock, num_slots=0, is_aligned=is_aligned)
            undo.pop_all()
            return slab

    @classmethod
    def adopt(
        cls, path: Path, superblock: Superblock, max_bytes: int, *, is_aligned: bool = True
    ) -> "Slab | None":
        """Take over a slab that another process left; None if in use, or of another superblock.

        Slots that are not entirely within the file and within `max_bytes` are cut off.

        Raises:
            OSError: The file system refuses.
        """
        file = SlabFile.take(path)
        if file is None:
            return None
        with ExitStack() as undo:
            undo.callback(file.close)
            if read_superblock(file) != superblock:
                return None
            file.touch()
            usable_bytes = min(file.size, max_bytes) - PAGE_BYTES
            num_slots = usable_bytes // slot_bytes(superblock.cell_bytes)
            slab = cls(file, path, superblock, num_slots, is_aligned=is_aligned)
            slab.resize(num_slots)
            undo.pop_all()
            return slab

    def resize(self, num_slots: int) -> None:
        """Resize the file to `num_slots` slots; the caller updates `slots`.

        Raises:
            OSError: There is no room; nothing has changed.
        """
        size = self.size_with(num_slots)
        if size > self.size:
            self._file.allocate(size)
        else:
            self._file.truncate(size)
        self.size = size

    def write(self, first_slot: int, cells: Sequence[Cell]) -> None:
        """Write cells into consecutive slots.

        Raises:
            OSError: Nothing is known about any of the slots.
        """
        pages = _headers.pages[: len(cells)]
        for page, cell in zip(pages, cells, strict=True):
            page[:] = CellHeader(
                identity=self._identity,
                key=cell.key,
                parent=cell.parent,
                payload_bytes=self._cell_bytes,
                payload_checksum=checksum(*cell.pieces),
            ).pack()
        self._file.write(self._buffers(pages, cells), self.size_with(first_slot))

    def erase(self, slot: int) -> None:
        """Clear the header in `slot`: no cell is found there again.

        Raises:
            OSError: The header may still be there.
        """
        self._file.write([_EMPTY_PAGE], self.size_with(slot))

    def unlink(self) -> None:
        """Delete the file, or empty it if it cannot be deleted; its blocks are not found again.

        Raises:
            OSError: Neither is possible.
        """
        try:
            self._file.unlink(self.path)
        except OSError:
            self._file.truncate(0)

    def close(self) -> None:
        """Unlock the file for others. No call may be in flight."""
        self._file.close()
