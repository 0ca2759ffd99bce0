"""The format on the disk. Pure functions of bytes: nothing here does I/O.

    <directory>/<namespace>/<column>/<name>.slab

    slab         superblock, slot 0, slot 1, ...
    superblock   4096 bytes: magic, length, checksum, JSON
    slot         one cell: header (4096 bytes), payload, padding to whole pages

A cell is valid if its header and its payload have the checksums that the header states, and if the
header names the identity and the key that the reader expects: then it is the right content,
whatever its file and slot. Nothing else on the disk is needed to find it again, and nothing read
from the disk is trusted before it is checked. Tokens are not stored: the key proves them, and
prompts do not belong on a disk in plain text.
"""

import struct
from hashlib import sha256

import msgspec
from xxhash import xxh3_64

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.checked_text import pack_text, unpack_text

__all__ = [
    "GENERATION_SUFFIX",
    "LOG_SUFFIX",
    "PAGE_BYTES",
    "SLAB_SUFFIX",
    "CellHeader",
    "Superblock",
    "checksum",
    "column_identity",
    "slot_bytes",
]

PAGE_BYTES = 4096
"""Everything begins on a page, as O_DIRECT requires of offsets; also the size of a header."""

SLAB_SUFFIX = ".slab"
LOG_SUFFIX = ".keys"
GENERATION_SUFFIX = ".generation"

_SLAB_MAGIC = b"FLEXKVS1"
_CELL_MAGIC = b"FLEXKVC1"
_CELL = struct.Struct("<8s32s32s32sQQ")  # magic, identity, key, parent, payload: bytes, checksum
_CHECKSUM = struct.Struct("<Q")
_NO_PARENT = bytes(32)


def checksum(*pieces: bytes | memoryview) -> int:
    """Return the 64-bit XXH3 of the concatenated `pieces`: against accidents, not attackers.

    Cost: about 20 GB/s; the GIL is released for large pieces.
    """
    digest = xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()


def column_identity(namespace: Namespace, column: Column, generation: str = "") -> bytes:
    """Return the 32 bytes that identify what a cell is a cell of."""
    name = f"{column.name}:{generation}" if generation else column.name
    return sha256(b"flexkv-column:" + namespace.digest + name.encode()).digest()


def slot_bytes(cell_bytes: int) -> int:
    """Return the size of a slot: a header and a cell, in whole pages."""
    return PAGE_BYTES + -(-cell_bytes // PAGE_BYTES) * PAGE_BYTES


class Superblock(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The description at the start of a slab.

    Append-only: defaults are left out, so where a later field has its default, earlier releases
    can read what this one writes.
    """

    namespace: Namespace
    column: str
    """`Column.name`."""

    identity: str
    """`column_identity` in hex, which decides; namespace, column and generation are for people."""

    cell_bytes: int
    is_temporary: bool = False
    """These blocks will never be looked up again: weights that were changed in place have no name.
    A process that finds such a slab unlocked deletes it."""

    generation: str = ""
    """Tells apart weights that changed in place under one name; "" for all others."""

    def pack(self) -> bytes:
        """Return one page."""
        return pack_text(_SLAB_MAGIC, self).ljust(PAGE_BYTES, b"\0")

    @classmethod
    def unpack(cls, page: bytes) -> "Superblock | None":
        """Read what `pack` wrote; None for anything else."""
        found = unpack_text(_SLAB_MAGIC, page, cls) if len(page) == PAGE_BYTES else None
        return found[0] if found else None

    @classmethod
    def of(
        cls,
        namespace: Namespace,
        column: Column,
        cell_bytes: int,
        *,
        generation: str = "",
        is_temporary: bool = False,
    ) -> "Superblock":
        """Describe the slabs of a column."""
        return cls(
            namespace=namespace,
            column=column.name,
            identity=column_identity(namespace, column, generation).hex(),
            cell_bytes=cell_bytes,
            is_temporary=is_temporary,
            generation=generation,
        )


class CellHeader(msgspec.Struct, frozen=True):
    """The description at the start of a cell."""

    identity: bytes
    key: BlockKey
    parent: BlockKey | None
    payload_bytes: int
    payload_checksum: int

    def pack(self) -> bytes:
        """Return one page."""
        fields = _CELL.pack(
            _CELL_MAGIC,
            self.identity,
            self.key,
            self.parent or _NO_PARENT,
            self.payload_bytes,
            self.payload_checksum,
        )
        return (fields + _CHECKSUM.pack(checksum(fields))).ljust(PAGE_BYTES, b"\0")

    @classmethod
    def unpack(cls, page: bytes | memoryview) -> "CellHeader | None":
        """Read what `pack` wrote from the beginning of `page`; None for anything else."""
        if len(page) < _CELL.size + _CHECKSUM.size:
            return None
        fields = bytes(page[: _CELL.size])
        (stated,) = _CHECKSUM.unpack_from(page, _CELL.size)
        if not fields.startswith(_CELL_MAGIC) or checksum(fields) != stated:
            return None
        _, identity, key, parent, payload_bytes, payload_checksum = _CELL.unpack(fields)
        return cls(
            identity,
            BlockKey(key),
            None if parent == _NO_PARENT else BlockKey(parent),
            payload_bytes,
            payload_checksum,
        )
