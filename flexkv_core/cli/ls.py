"""`flexkv ls`: what is in the directories, by namespace and column."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.cli.cells import Verdict, filled_slots, read_header
from flexkv_core.cli.folders import Oddity, SlabPath, find_slabs, is_locked, open_slab, reason_of
from flexkv_core.cli.slab_reader import SlabInfo, read_slab
from flexkv_core.cli.text import (
    Progress,
    bytes_text,
    counted,
    printable,
    table,
    time_text,
    write_json,
)
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, CellHeader, Superblock, slot_bytes
from flexkv_core.data.tiers.ssd.generations import is_outdated

__all__ = ["SCHEMA_VERSION", "list_directories"]

SCHEMA_VERSION = 1
"""Of the JSON: keys may be added; changing the meaning of a key needs a new version."""

_PARTS = {
    "offload": "rows of vLLM's own offloading: all that the model keeps",
    "windows-kept-whole": "all tokens, of layers with windows, too",
}
"""What blocks of a `Namespace.cache_group` hold; any other is named as it is."""


class _Column(msgspec.Struct, kw_only=True):
    """The slabs of one column, in all directories together."""

    column: str
    slabs: int = 0
    slabs_in_use: int = 0
    cells: int = 0
    bytes_on_disk: int = 0
    bytes_used: int = 0
    newest_write_s: int = 0


class _Listed(msgspec.Struct, kw_only=True):
    """The slabs of one namespace that engines treat alike."""

    namespace: str
    model: str
    kv_cache_dtype: str
    block_tokens: int
    weight_version: str
    user: str
    cache_group: str
    temporary: bool
    outdated: bool
    """An engine that starts now ignores them: they are from before a reset, or temporary."""

    blocks: int
    columns: list[_Column]


class _Directory(msgspec.Struct, kw_only=True):
    path: str
    bytes_free: int


def list_directories(directories: Sequence[Path], *, as_json: bool) -> int:
    """List what is in `directories` on standard output; return the exit status.

    Cost: reads every header, 4 KiB per cell, and no payload; about 100 bytes of memory per cell of
    the largest namespace.
    """
    oddities: list[Oddity] = []
    paths = [path for directory in directories for path in find_slabs(directory, oddities)]
    progress = Progress(len(paths))
    namespaces = list(_list_namespaces(directories, paths, oddities, progress))
    progress.end()
    rooms = [_Directory(path=str(path), bytes_free=_free(path)) for path in directories]
    if as_json:
        report = {
            "schema_version": SCHEMA_VERSION,
            "command": "ls",
            "directories": rooms,
            "namespaces": namespaces,
            "damaged": oddities,
        }
        write_json(msgspec.to_builtins(report))
    else:
        sys.stdout.writelines(_lines(rooms, namespaces, oddities))
    return 0


def _free(directory: Path) -> int:
    """Return the bytes that an unprivileged user may still write."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _list_namespaces(
    directories: Sequence[Path],
    paths: Iterable[SlabPath],
    oddities: list[Oddity],
    progress: Progress,
) -> Iterator[_Listed]:
    """Yield the namespaces in the order of their names, the outdated part of each last."""
    for _, group in groupby(sorted(paths, key=_namespace_of), _namespace_of):
        reader = _NamespaceReader(directories, oddities, progress)
        for path in group:
            progress.begin_slab()
            reader.read(path)
        yield from reader.listed()


def _namespace_of(path: SlabPath) -> str:
    return path.namespace


class _Sum:
    """Slabs of one namespace that engines treat alike."""

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._keys: dict[str, set[BlockKey]] = {}

    def add(self, slab: SlabInfo, superblock: Superblock, keys: Sequence[BlockKey]) -> None:
        """Count a slab with these cells."""
        column = self._columns.setdefault(superblock.column, _Column(column=superblock.column))
        self._keys.setdefault(superblock.column, set()).update(keys)
        column.slabs += 1
        column.slabs_in_use += slab.in_use
        column.cells += len(keys)
        column.bytes_on_disk += slab.bytes_on_disk
        column.bytes_used += len(keys) * slot_bytes(superblock.cell_bytes)
        column.newest_write_s = max(column.newest_write_s, slab.newest_write_s)

    def listed(self, namespace: Namespace, *, is_outdated: bool, is_temporary: bool) -> _Listed:
        """Return the sum."""
        return _Listed(
            namespace=namespace.short,
            model=namespace.model,
            kv_cache_dtype=namespace.kv_cache_dtype,
            block_tokens=namespace.block_tokens,
            weight_version=namespace.weight_version,
            user=namespace.user,
            cache_group=namespace.cache_group,
            temporary=is_temporary,
            outdated=is_outdated,
            blocks=len(set.intersection(*self._keys.values())),
            columns=[self._columns[name] for name in sorted(self._columns)],
        )


class _NamespaceReader:
    """Reads the slabs of one namespace, one after the other."""

    def __init__(
        self, directories: Sequence[Path], oddities: list[Oddity], progress: Progress
    ) -> None:
        self._directories = directories
        self._oddities = oddities
        self._progress = progress
        self._namespace: Namespace | None = None
        self._sums: dict[tuple[bool, bool], _Sum] = {}
        """By whether it is outdated, and whether it is temporary."""

    def read(self, path: SlabPath) -> None:
        """Add the slab at `path`, or an oddity."""
        try:
            with open_slab(path) as number:
                slab = read_slab(number, path, in_use=is_locked(number))
                if slab.damage is not None:
                    oddity = Oddity(str(path), slab.damage.value, slab.bytes_on_disk)
                    self._oddities.append(oddity)
                elif slab.superblock is not None:
                    self._add(path, number, slab, slab.superblock)
        except FileNotFoundError:
            return  # an engine has just deleted it
        except OSError as error:
            self._oddities.append(Oddity(str(path), reason_of(error)))

    def listed(self) -> Iterator[_Listed]:
        """Yield the sums."""
        if self._namespace is None:
            return
        for kind in sorted(self._sums):
            yield self._sums[kind].listed(
                self._namespace, is_outdated=kind[0], is_temporary=kind[1]
            )

    def _add(self, path: SlabPath, number: int, slab: SlabInfo, superblock: Superblock) -> None:
        """Count an undamaged slab."""
        self._namespace = superblock.namespace
        headers = list(self._headers(number, slab, superblock))
        keys = [header.key for header in headers if header is not None]
        kind = is_outdated(superblock, self._directories), superblock.is_temporary
        self._sums.setdefault(kind, _Sum()).add(slab, superblock, keys)
        if num_bad := headers.count(None):
            reason = f"{counted(num_bad, 'bad header')}: run flexkv fsck"
            self._oddities.append(Oddity(str(path), reason, slab.bytes_on_disk))

    def _headers(
        self, number: int, slab: SlabInfo, superblock: Superblock
    ) -> Iterator[CellHeader | None]:
        """Yield the header of each cell, None for a bad one."""
        for slot in filled_slots(number, slab):
            self._progress.advance(PAGE_BYTES)
            header = read_header(number, superblock, slot)
            if header is Verdict.CORRUPT_HEADER and is_locked(number):
                header = read_header(number, superblock, slot)  # an engine may have been writing it
            yield None if isinstance(header, Verdict) else header


def _lines(
    rooms: Iterable[_Directory], namespaces: Sequence[_Listed], oddities: Sequence[Oddity]
) -> Iterator[str]:
    """Yield the listing for people."""
    for room in rooms:
        yield f"{printable(room.path)}: {bytes_text(room.bytes_free)} free\n"
    if not namespaces:
        yield "no slabs that can be read\n"
    for namespace in namespaces:
        yield from _namespace_lines(namespace)
    if oddities:
        yield "\nnot readable, or only in part:\n"
    for oddity in oddities:
        held = f" ({bytes_text(oddity.bytes_on_disk)})" if oddity.bytes_on_disk else ""
        yield f"  {printable(oddity.path)}{held}: {printable(oddity.reason)}\n"


def _namespace_lines(listed: _Listed) -> Iterator[str]:
    blocks = f"{counted(listed.blocks, 'block')} of {counted(listed.block_tokens, 'token')}"
    yield f"\nnamespace {listed.namespace}: {blocks}, {printable(listed.kv_cache_dtype)}\n"
    yield f"  model {printable(listed.model)}\n"
    if listed.weight_version:
        yield f"  weight version {printable(listed.weight_version)}\n"
    if listed.user:
        yield f"  user {printable(listed.user)}\n"
    if listed.cache_group:
        other = f"state kept beside the KV: {printable(listed.cache_group)}"
        yield f"  {_PARTS.get(listed.cache_group, other)}\n"
    if listed.temporary:
        yield "  temporary: deleted once no engine uses it\n"
    elif listed.outdated:
        yield "  from before a reset: no engine will read it, deleted when its room is needed\n"
    header = ("COLUMN", "SLABS", "IN USE", "CELLS", "ON DISK", "USED", "NEWEST WRITE")
    yield table([header, *map(_row, listed.columns)])


def _row(column: _Column) -> tuple[str, ...]:
    return (
        column.column,
        str(column.slabs),
        str(column.slabs_in_use),
        f"{column.cells:,}",
        bytes_text(column.bytes_on_disk),
        bytes_text(column.bytes_used),
        time_text(column.newest_write_s),
    )
