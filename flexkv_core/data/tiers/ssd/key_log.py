"""Logs where the keys of a column are, for processes of the same engine that only read.

    <directory>/.<name>.keys     header: magic, length, checksum, JSON; records of 40 bytes

A log is for live processes of one machine: it is never synced, never used for recovery and deleted
by its writer; logs of killed processes are deleted when a process makes room. A reader need not
trust it, since every cell describes itself: a record that is late, torn or wrong costs a miss.
"""

import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.checked_text import pack_text, unpack_text
from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.files import SlabFile
from flexkv_core.data.tiers.ssd.format import LOG_SUFFIX, Superblock
from flexkv_core.data.tiers.ssd.slab import Slab
from flexkv_core.data.tiers.ssd.space import Space

__all__ = ["RECORD_BYTES", "KeyLog", "KeyRecord", "LogHeader", "log_name", "unpack_records"]

logger = logging.getLogger(__name__)

_MAGIC = b"FLEXKVK1"
_RECORD = struct.Struct("<32sII")  # key, slab, slot
RECORD_BYTES = _RECORD.size

_GONE = 0xFFFF_FFFF
_MIN_RECORDS = 1 << 16
"""A log is rewritten when it has twice its first number of records plus this many: it takes at most
80 bytes a block plus 2.6 MB, and a write costs its own records and a share of the next rewrite."""

_RETRY_S = 60.0
"""How long followers are left without a log after a failure."""


class LogHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description at the start of a log."""

    engine_id: str
    num_resets: int = msgspec.field(name="generation")
    """How often the writer was reset. A follower that was reset as often has the same weights."""

    superblock: Superblock
    """Of the slabs."""

    slabs: tuple[str, ...] = ()
    """Paths; records name a slab by its index here."""

    def pack(self) -> bytes:
        """Return the start of a log."""
        return pack_text(_MAGIC, self)

    @classmethod
    def unpack(cls, content: bytes) -> "tuple[LogHeader, int] | None":
        """Read what `pack` wrote, and how many bytes it was; None for anything else."""
        return unpack_text(_MAGIC, content, cls)


class KeyRecord(NamedTuple):
    """Where a key is, until a later record says otherwise."""

    key: BlockKey
    slab: int | None
    """Index in the header's `slabs`; None for a key that is gone."""

    slot: int

    def pack(self) -> bytes:
        """Return `RECORD_BYTES` bytes."""
        return _RECORD.pack(self.key, _GONE if self.slab is None else self.slab, self.slot)


def unpack_records(content: bytes | memoryview) -> Iterator[KeyRecord]:
    """Read complete records, without validating them."""
    for key, slab, slot in _RECORD.iter_unpack(content):
        yield KeyRecord(BlockKey(key), None if slab == _GONE else slab, slot)


def log_name(engine_id: str, namespace: Namespace, column: Column) -> str:
    """Return the name of a column's log."""
    digest = sha256(namespace.digest + f"{column.name} {engine_id}".encode()).hexdigest()
    return f".{digest[:16]}{LOG_SUFFIX}"


class KeyLog:
    """The log of one column, written by the process that owns its slabs.

    It is rewritten when the slabs change, and when most of it is outdated; the new file atomically
    replaces the old. A failure costs followers their hits, and nothing else.

    Thread: any; `_writing` admits one write at a time, so the last record of a key is true.
    """

    def __init__(
        self,
        space: Space,
        directories: Sequence[Directory],
        name: str,
        header: LogHeader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet.

        Args:
            space: Finds keys; has the slabs.
            directories: The log is in the first, or in the next once one has failed.
            name: Of the file: `log_name`.
            header: Without slabs.
            clock: By which a log that failed is tried again.
        """
        self._space = space
        self._directories = deque(directories)
        self._name = name
        self._header = header
        self._clock = clock
        self._writing = threading.Lock()
        self._file: SlabFile | None = None
        self._path = Path()
        self._slabs: tuple[Slab, ...] = ()
        self._size = 0
        self._max_size = 0
        self._retry_s = 0.0
        self._is_closed = False

    def note(self, keys: Iterable[BlockKey]) -> None:
        """Log where `keys` are now. Call after every change, not under the lock of the space."""
        with self._writing:
            if self._is_closed or self._clock() < self._retry_s:
                return
            try:
                self._write(keys)
            except OSError as error:
                logger.warning("ssd.not_followed log=%s: %s", self._name, error.strerror)
                self._end()
                self._retry_s = self._clock() + _RETRY_S
                self._directories.rotate(-1)

    def close(self) -> None:
        """Delete the log: following ends."""
        with self._writing:
            self._is_closed = True
            self._end()

    def _write(self, keys: Iterable[BlockKey]) -> None:
        with self._space.lock:
            slabs = self._space.slabs
            can_append = slabs is self._slabs and self._size < self._max_size
            records = self._records_of(keys) if can_append else _all_records(slabs)
        content = b"".join(record.pack() for record in records)
        if self._file is not None and can_append:
            self._file.write([memoryview(content)], self._size)
            self._size += len(content)
        else:
            self._begin(slabs, content)

    def _records_of(self, keys: Iterable[BlockKey]) -> list[KeyRecord]:
        """Return where `keys` are; under the lock of the space."""
        records = []
        for key in keys:
            slab, slot = self._space.find(key) or (None, 0)
            number = None if slab is None else self._slabs.index(slab)
            records.append(KeyRecord(key, number, slot))
        return records

    def _begin(self, slabs: tuple[Slab, ...], records: bytes) -> None:
        """Replace the log by a new one of all keys."""
        paths = tuple(str(slab.path) for slab in slabs)
        content = msgspec.structs.replace(self._header, slabs=paths).pack() + records
        path, file = self._directories[0].make_log(self._name, content)
        self._end()
        self._path, self._file, self._slabs = path, file, slabs
        self._size = len(content)
        self._max_size = len(content) + len(records) + _MIN_RECORDS * RECORD_BYTES

    def _end(self) -> None:
        """Delete the log, unless another has taken its name; empty one that cannot be deleted.

        Otherwise followers would stay with it, and find nothing that is in the next one.
        """
        file, self._file = self._file, None
        self._max_size = 0  # the next one begins with all keys
        if file is None:
            return
        with suppress(OSError):
            try:
                file.unlink(self._path)
            except OSError:
                file.truncate(0)
        file.close()


def _all_records(slabs: Sequence[Slab]) -> list[KeyRecord]:
    """Return where all keys are; under the lock of the space."""
    return [
        KeyRecord(key, number, slot)
        for number, slab in enumerate(slabs)
        for key, slot in slab.slots.places()
    ]
