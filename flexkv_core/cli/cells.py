"""What the slots of an open slab hold, checked byte by byte. Nothing read is trusted."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from xxhash import xxh3_64

from flexkv_core.cli.folders import is_locked
from flexkv_core.cli.slab_reader import EMPTY_PAGE, SlabInfo, read_at, slot_offset
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    CellHeader,
    Superblock,
    checksum,
    slot_bytes,
)

__all__ = ["CellInfo", "Verdict", "filled_slots", "read_again", "read_cell", "read_header"]

_PIECE_BYTES = 4 << 20


class Verdict(Enum):
    """What is in a slot."""

    EMPTY = "empty"
    VALID = "valid"
    CORRUPT_HEADER = "corrupt_header"
    CORRUPT_PAYLOAD = "corrupt_payload"
    FOREIGN_IDENTITY = "foreign_identity"
    CHANGING = "changing"
    """An engine is writing it."""

    @property
    def is_bad(self) -> bool:
        """Whether no engine will ever read this cell, and none is rewriting it now."""
        return self not in {Verdict.EMPTY, Verdict.VALID, Verdict.CHANGING}


@dataclass(frozen=True, slots=True)
class CellInfo:
    """What a slot held when it was read; equal for two reads of the same bytes."""

    slot: int
    verdict: Verdict
    page_checksum: int
    header: CellHeader | None = None
    payload_checksum: int | None = None


def filled_slots(number: int, slab: SlabInfo) -> Iterator[int]:
    """Yield each slot whose header is not empty."""
    slot = 0
    while slab.superblock is not None and slot < slab.num_slots:
        if _read_page(number, slab.superblock, slot) != EMPTY_PAGE:
            yield slot
            slot += 1
        else:
            slot = _next_slot(number, slab, slab.superblock, slot)


def read_header(number: int, superblock: Superblock, slot: int) -> CellHeader | Verdict:
    """Return the header in `slot`, or a verdict if there is no valid one."""
    return _check_header(superblock, _read_page(number, superblock, slot))


def read_cell(number: int, superblock: Superblock, slot: int) -> CellInfo:
    """Read and verify the cell in `slot`."""
    page = _read_page(number, superblock, slot)
    header = _check_header(superblock, page)
    if isinstance(header, Verdict):
        return CellInfo(slot, header, checksum(page))
    start = slot_offset(superblock, slot) + PAGE_BYTES
    found = _checksum(number, start, header.payload_bytes)
    # Caching what was just verified would evict pages that serve requests.
    _drop_from_cache(number, superblock, slot)
    is_valid = found == header.payload_checksum
    verdict = Verdict.VALID if is_valid else Verdict.CORRUPT_PAYLOAD
    return CellInfo(slot, verdict, checksum(page), header, found)


def read_again(number: int, superblock: Superblock, first: CellInfo) -> CellInfo:
    """Return what the slot of a bad cell holds now: an engine may have been writing it."""
    _drop_from_cache(number, superblock, first.slot)
    again = read_cell(number, superblock, first.slot)
    if again.verdict.is_bad and again != first and is_locked(number):
        return replace(again, verdict=Verdict.CHANGING)
    return again


def _check_header(superblock: Superblock, page: bytes) -> CellHeader | Verdict:
    """Return the header in `page`, or a verdict if there is no valid one."""
    if page == EMPTY_PAGE:
        return Verdict.EMPTY
    header = CellHeader.unpack(page)
    if header is None or header.pack() != page:
        return Verdict.CORRUPT_HEADER
    if header.identity.hex() != superblock.identity:
        return Verdict.FOREIGN_IDENTITY
    return header if header.payload_bytes == superblock.cell_bytes else Verdict.CORRUPT_HEADER


def _read_page(number: int, superblock: Superblock, slot: int) -> bytes:
    return read_at(number, PAGE_BYTES, slot_offset(superblock, slot))


def _drop_from_cache(number: int, superblock: Superblock, slot: int) -> None:
    """Drop `slot` from the page cache, so that the next read comes from the disk."""
    offset, num_bytes = slot_offset(superblock, slot), slot_bytes(superblock.cell_bytes)
    os.posix_fadvise(number, offset, num_bytes, os.POSIX_FADV_DONTNEED)


def _checksum(number: int, offset: int, num_bytes: int) -> int | None:
    """Return the checksum of a payload, None if the file ends within it."""
    digest = xxh3_64()
    end = offset + num_bytes
    while offset < end:
        piece = read_at(number, min(_PIECE_BYTES, end - offset), offset)
        if not piece:
            return None
        digest.update(piece)
        offset += len(piece)
    return digest.intdigest()


def _next_slot(number: int, slab: SlabInfo, superblock: Superblock, slot: int) -> int:
    """Return the first slot after `slot` that may ever have been written."""
    try:
        written = os.lseek(number, slot_offset(superblock, slot + 1), os.SEEK_DATA)
    except OSError as error:
        return slab.num_slots if error.errno == errno.ENXIO else slot + 1
    return (written - PAGE_BYTES) // slot_bytes(superblock.cell_bytes)
