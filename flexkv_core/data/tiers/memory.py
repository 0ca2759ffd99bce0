"""Where blocks are while a tier moves them: slots of a host pool, or an engine's own pages."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from flexkv_core.errors import LayoutError

__all__ = [
    "MAX_PIECES",
    "MEMORY_ALIGNMENT",
    "NO_MEMORY",
    "BlockMemory",
    "PageMemory",
    "PagePiece",
    "SlotMemory",
    "cut",
]

MEMORY_ALIGNMENT = 4096
"""Alignment that direct I/O requires of addresses and lengths: a page."""

MAX_PIECES = 1000
"""Pieces of one page at most: a cell with header and padding is one call, and Linux takes 1024
buffers per call."""


class BlockMemory(ABC):
    """Equal slots for one rank's blocks. Owns nothing.

    Thread: any; two calls may not use one slot at once.
    """

    num_slots: int
    slot_bytes: int
    """Bytes of a block, over all pieces."""

    is_aligned: bool
    """Whether every piece begins and ends on a memory page, as direct I/O requires."""

    @abstractmethod
    def pieces(self, slot: int) -> Sequence[memoryview]:
        """Return the pieces of the block in `slot`, in the order in which it is stored."""


class SlotMemory(BlockMemory):
    """Slots of one region, each in one piece."""

    def __init__(self, region: memoryview, num_slots: int, slot_bytes: int, stride: int) -> None:
        """Use the first `slot_bytes` of every `stride` bytes; a region begins on a memory page."""
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes
        self.is_aligned = not (stride % MEMORY_ALIGNMENT or slot_bytes % MEMORY_ALIGNMENT)
        self._region = region
        self._stride = stride

    @override
    def pieces(self, slot: int) -> Sequence[memoryview]:
        first = slot * self._stride
        return (self._region[first : first + self.slot_bytes],)


NO_MEMORY = SlotMemory(memoryview(b""), num_slots=0, slot_bytes=0, stride=1)
"""The memory of a closed tier."""


class PagePiece(NamedTuple):
    """The same part of every page of an engine, in bytes."""

    address: int
    """Of page 0."""

    stride: int
    """From a page to the next."""

    num_bytes: int


class PageMemory(BlockMemory):
    """An engine's own pages, so that nothing is copied between them and a file.

    The engine keeps the memory where it is for as long as its owner lives.
    """

    def __init__(self, pieces: Sequence[PagePiece], num_pages: int, owner: object = None) -> None:
        """Describe `num_pages` pages, each the sum of `pieces`.

        Args:
            pieces: In the order in which they are stored.
            num_pages: All pages of the engine.
            owner: Must not be freed before this object: a disk may answer late.

        Raises:
            LayoutError: A page has too many pieces to be moved in one call.
        """
        if len(pieces) > MAX_PIECES:
            msg = f"a page consists of {len(pieces)} pieces, expected {MAX_PIECES} at most"
            raise LayoutError(msg)
        self._owner = owner
        self.num_slots = num_pages
        self.slot_bytes = sum(piece.num_bytes for piece in pieces)
        self.is_aligned = not any(n % MEMORY_ALIGNMENT for piece in pieces for n in piece)
        self._columns = [(_view(piece, num_pages), *piece[1:]) for piece in pieces]

    @override
    def pieces(self, slot: int) -> Sequence[memoryview]:
        return [
            view[slot * stride : slot * stride + num_bytes]
            for view, stride, num_bytes in self._columns
        ]


def cut(pieces: Sequence[memoryview], first: int, num_bytes: int) -> list[memoryview]:
    """Return bytes `first` to `first + num_bytes` of the concatenated `pieces`."""
    found = []
    for piece in pieces:
        inside = piece[max(first, 0) : max(first + num_bytes, 0)]
        if len(inside):
            found.append(inside)
        first -= len(piece)
    return found


def _view(piece: PagePiece, num_pages: int) -> memoryview:
    """Return the memory from a piece's first byte in page 0 to its last in the last page."""
    span = (num_pages - 1) * piece.stride + piece.num_bytes
    return np.ctypeslib.as_array((ctypes.c_uint8 * span).from_address(piece.address)).data
