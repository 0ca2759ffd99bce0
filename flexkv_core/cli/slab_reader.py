"""Reads a slab as a whole: its superblock, and whether it can be used."""

import os
import re
import struct
from dataclasses import dataclass
from enum import Enum

from flexkv_core.block.layout import Column
from flexkv_core.cli.folders import SlabPath, is_private
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    Superblock,
    checksum,
    column_identity,
    slot_bytes,
)

__all__ = ["EMPTY_PAGE", "Damage", "SlabInfo", "read_at", "read_slab", "slot_offset"]

EMPTY_PAGE = bytes(PAGE_BYTES)

_COLUMN = re.compile(r"heads-(\d{1,9})-(\d{1,9})\.layers-(\d{1,9})-(\d{1,9})", re.ASCII)
_MAGIC, _VERSION = b"FLEXKVS", b"1"
_PREFIX = struct.Struct("<8sIQ")  # magic with version, bytes of JSON, their checksum


class Damage(Enum):
    """Why a slab as a whole cannot be used."""

    UNREADABLE = "the superblock cannot be read"
    OTHER_VERSION = "another version of FlexKV wrote it"
    MISPLACED = "it belongs to another namespace or column than its folders say"
    UNFINISHED = "an engine is just creating it"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabInfo:
    """A slab, without its cells."""

    superblock: Superblock | None
    damage: Damage | None
    """None if and only if there is a superblock that matches the folders."""

    in_use: bool
    size_bytes: int
    bytes_on_disk: int
    newest_write_s: int
    """Seconds since the epoch."""

    is_private: bool
    """No other user can read it, or write to its folders."""

    has_cut_cell: bool
    """The file ends within a cell."""

    @property
    def num_slots(self) -> int:
        """Complete slots; 0 if the slab is damaged, since no engine reads its cells."""
        if self.superblock is None or self.damage is not None:
            return 0
        return _num_slots(self.superblock, self.size_bytes)


def read_slab(number: int, path: SlabPath, *, in_use: bool) -> SlabInfo:
    """Read the slab at `path`, open as `number`; `in_use` is what the caller knows of its lock."""
    status = os.fstat(number)
    page = read_at(number, PAGE_BYTES, 0)
    superblock = _superblock(page)
    return SlabInfo(
        superblock=superblock,
        damage=_damage(page, superblock, path, in_use=in_use),
        in_use=in_use,
        size_bytes=status.st_size,
        bytes_on_disk=status.st_blocks * 512,
        newest_write_s=int(status.st_mtime),
        is_private=is_private(number, path),
        has_cut_cell=superblock is not None
        and _ends_within_cell(number, superblock, status.st_size),
    )


def read_at(number: int, num_bytes: int, offset: int) -> bytes:
    """Return up to `num_bytes` from `offset`; what the disk cannot read is missing."""
    try:
        return os.pread(number, num_bytes, offset)
    except OSError:
        return b""


def slot_offset(superblock: Superblock, slot: int) -> int:
    """Return where `slot` begins in its slab."""
    return PAGE_BYTES + slot * slot_bytes(superblock.cell_bytes)


def _superblock(page: bytes) -> Superblock | None:
    """Return the superblock in `page` if engines would accept it."""
    try:
        superblock = Superblock.unpack(page)
    except UnicodeDecodeError:
        return None
    return superblock if superblock is not None and _is_consistent(superblock) else None


def _num_slots(superblock: Superblock, size_bytes: int) -> int:
    return max(0, size_bytes - PAGE_BYTES) // slot_bytes(superblock.cell_bytes)


def _ends_within_cell(number: int, superblock: Superblock, size_bytes: int) -> bool:
    """Return whether data follows the last complete slot, in a file that is not growing."""
    tail = slot_offset(superblock, _num_slots(superblock, size_bytes))
    return any(read_at(number, PAGE_BYTES, tail)) and os.fstat(number).st_size == size_bytes


def _is_consistent(superblock: Superblock) -> bool:
    """Return whether the fields of a superblock for people match those for engines."""
    found = _COLUMN.fullmatch(superblock.column)
    if found is None or superblock.cell_bytes < 1:
        return False
    first_head, last_head, first_layer, last_layer = map(int, found.groups())
    column = Column(
        first_head=first_head,
        num_heads=last_head - first_head + 1,
        first_layer=first_layer,
        num_layers=last_layer - first_layer + 1,
    )
    identity = column_identity(superblock.namespace, column, superblock.generation).hex()
    return (column.name, identity) == (superblock.column, superblock.identity)


def _damage(
    page: bytes, superblock: Superblock | None, path: SlabPath, *, in_use: bool
) -> Damage | None:
    """Return what keeps engines from using the slab at `path` that begins with `page`."""
    if superblock is not None:
        folders = (superblock.namespace.short, superblock.column)
        return None if folders == (path.namespace, path.column) else Damage.MISPLACED
    if in_use and not any(page):
        return Damage.UNFINISHED
    return Damage.OTHER_VERSION if _is_of_another_version(page) else Damage.UNREADABLE


def _is_of_another_version(page: bytes) -> bool:
    """Return whether `page` is an intact superblock of an unknown version."""
    if len(page) != PAGE_BYTES or not page.startswith(_MAGIC):
        return False
    magic, length, stated = _PREFIX.unpack_from(page)
    if magic != _MAGIC + _VERSION:
        return True
    return bool(checksum(page[_PREFIX.size :][:length]) == stated)
