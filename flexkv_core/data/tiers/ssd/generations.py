"""Which generation of blocks is valid under a name that the user gave to weights.

    <directory>/.<namespace>.<column>.generation     magic, length, checksum, JSON

Such a name stays when the weights change in place. So everything stored carries the token of its
generation, and a record in every directory names the newest token: if an older file or folder comes
back, nothing in it is of that generation. The highest count wins. If there is no record, or one
that cannot be read, weights may have changed meanwhile, and a new generation begins.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.checked_text import pack_text, unpack_text
from flexkv_core.data.tiers.ssd.files import (
    SharedFile,
    empty_durably,
    remove_durably,
    write_durably,
)
from flexkv_core.data.tiers.ssd.format import (
    GENERATION_SUFFIX,
    Superblock,
)

if TYPE_CHECKING:  # the command asks for records, and loads no numpy
    from flexkv_core.data.tiers.ssd.directory import Directory

__all__ = ["Generation", "Generations", "is_outdated"]

logger = logging.getLogger(__name__)

_MAGIC = b"FLEXKVG1"
_MAX_BYTES = 4096


class Generation(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """The content of a record."""

    count: int
    """One more than the highest count known when this generation began."""

    token: str
    """`Superblock.generation`."""

    def followed_by(self, token: str) -> "Generation":
        """Return the next generation."""
        return Generation(self.count + 1, token)

    def pack(self) -> bytes:
        """Return the content of a record."""
        return pack_text(_MAGIC, self)

    @classmethod
    def unpack(cls, content: bytes) -> "Generation | None":
        """Read what `pack` wrote; None for anything else."""
        found = unpack_text(_MAGIC, content, cls)
        return found[0] if found else None


_NONE = Generation(0, "")
_Resolve = Callable[[Generation, Generation], Generation]
"""Maps our generation, and a newer one that another process recorded, to ours from now on."""


class Generations:
    """The generation of each of a rank's columns.

    If the user gave no name, nothing is recorded and all tokens are empty.

    Thread: one at a time.
    """

    def __init__(
        self, directories: Sequence["Directory"], namespace: Namespace, columns: Sequence[Column]
    ) -> None:
        """Read and write nothing yet."""
        self._is_undone = False
        """Whether a reset could not be told to any directory."""

        self._directories = directories
        self._has_name = bool(namespace.weight_version)
        folders = [directory.path for directory in directories]
        self._records = [
            _Record(folders, _record_name(namespace, column.name)) for column in columns
        ]

    def resume(self, token: str) -> list[str] | None:
        """Continue with the newest known generations.

        Args:
            token: Of a new generation, where none is known; never used before.

        Returns:
            The token of each column; None if no directory keeps a record: blocks stored now could
            not be told from later ones.
        """
        for record in self._records:
            record.resume(token)
        return self._record_all(_adopt)

    def begin(self, token: str) -> list[str] | None:
        """Make the generation `token` newer than all others; otherwise like `resume`."""
        for record in self._records:
            record.begin(token)
        tokens = self._record_all(_supersede)
        self._is_undone = tokens is None and not self._invalidate()
        return tokens

    def close(self) -> None:
        """Try again what a reset could not do, for the next start."""
        self._is_undone = self._is_undone and not self._invalidate()

    def _record_all(self, resolve: _Resolve) -> list[str] | None:
        if not self._has_name:
            return [""] * len(self._records)
        failures = [self._write(directory, resolve) for directory in self._directories]
        if None not in failures:
            logger.warning("ssd.generation_not_recorded: blocks are kept until the engine ends")
            return None
        for directory, failure in zip(self._directories, failures, strict=True):
            if failure is not None:
                self._remove_others(directory, failure)
        return [record.generation.token for record in self._records]

    def _write(self, directory: "Directory", resolve: _Resolve) -> OSError | None:
        """Record the chosen generations in `directory`; return the error if that fails."""
        try:
            with directory.locked():
                for record in self._records:
                    record.write(directory.path, resolve)
        except OSError as error:
            return error
        return None

    def _remove_others(self, directory: "Directory", reason: OSError) -> None:
        """Delete records that could not be replaced: without one, the other directories count."""
        outcomes = [record.remove_other(directory.path) for record in self._records]
        if False in outcomes:
            logger.warning(
                "ssd.generation_not_recorded directory=%s: %s; blocks from before the reset are"
                " found again if, at a later start, all other directories of ssd_cache_dir are gone"
                " or rolled back",
                directory.path,
                reason.strerror,
            )

    def _invalidate(self) -> bool:
        """Empty all records, as none could be replaced: the next start begins a new generation."""
        outcomes = [record.invalidate() for record in self._records]
        if False in outcomes:
            logger.warning(
                "ssd.generation_not_recorded directories=%s: blocks from before the reset may be"
                " found again: delete .*%s there before the next start",
                [str(directory.path) for directory in self._directories],
                GENERATION_SUFFIX,
            )
        return False not in outcomes


def is_outdated(superblock: Superblock, folders: Sequence[Path]) -> bool:
    """Return whether an engine that starts on `folders` now would ignore such slabs.

    It does after a reset, and if they are temporary.
    """
    namespace = superblock.namespace
    if not namespace.weight_version:
        return superblock.is_temporary
    record = _Record(folders, _record_name(namespace, superblock.column))
    record.resume("")
    return superblock.is_temporary or superblock.generation != record.generation.token


class _Record:
    """The record of one column, in all directories."""

    def __init__(self, folders: Sequence[Path], name: str) -> None:
        self.generation = _NONE
        self._folders = folders
        self._name = name

    def resume(self, token: str) -> None:
        """Choose the newest generation, or a new one if there may be an unknown one."""
        newest = _newest(self._found())
        self.generation = newest if self.is_known else newest.followed_by(token)

    def begin(self, token: str) -> None:
        """Choose a new generation."""
        newest = max(_newest(self._found()), self.generation)
        self.generation = newest.followed_by(token)

    def write(self, folder: Path, resolve: _Resolve) -> None:
        """Record the chosen generation in `folder`; under its lock.

        Raises:
            OSError: The record may still be another.
        """
        newest, own = _newest(self._found()), self.generation
        if newest.token != own.token and newest.count >= own.count:
            self.generation = resolve(own, newest)
        if _read(folder / self._name) != self.generation:
            write_durably(folder / self._name, self.generation.pack())

    def remove_other(self, folder: Path) -> bool:
        """Delete the record of `folder` unless it is ours; return whether no other one is left.

        One with a higher count goes as well: it could not be read when ours was chosen.
        """
        path = folder / self._name
        return _read(path) in (_NONE, self.generation) or _try(remove_durably, path)

    def invalidate(self) -> bool:
        """Make the records of all folders worthless; return whether none can be believed again.

        One that is empty is enough, or none may be left. What cannot be read now may be readable
        at the next start. Deletion needs no file to be opened.
        """
        paths = [folder / self._name for folder in self._folders]
        is_emptied = [_try(empty_durably, path) or _is_damaged(path) for path in paths]
        return True in is_emptied or False not in [_try(remove_durably, path) for path in paths]

    @property
    def is_known(self) -> bool:
        """Whether there is a record, and none is unreadable: such a one may be newer."""
        found = self._found()
        return None not in found and _newest(found) != _NONE

    def _found(self) -> list[Generation | None]:
        return [_read(folder / self._name) for folder in self._folders]


def _record_name(namespace: Namespace, column: str) -> str:
    # Weights may be reported as changed before it is known which they were.
    return f".{namespace.without_content.short}.{column}{GENERATION_SUFFIX}"


def _try(change: Callable[[Path], None], path: Path) -> bool:
    try:
        change(path)
    except OSError:
        return False
    return True


def _adopt(_: Generation, newest: Generation) -> Generation:
    return newest


def _supersede(own: Generation, newest: Generation) -> Generation:
    return newest.followed_by(own.token)


def _newest(found: Sequence[Generation | None]) -> Generation:
    return max(filter(None, found), default=_NONE)


def _read(path: Path) -> Generation | None:
    """Return a record, `_NONE` if there is none, None if it cannot be read."""
    try:
        return _load(path)
    except (FileNotFoundError, NotADirectoryError):
        return _NONE
    except OSError:
        return None


def _is_damaged(path: Path) -> bool:
    """Return whether a record can be read, and is none."""
    try:
        return _load(path) is None
    except OSError:
        return False


def _load(path: Path) -> Generation | None:
    content = bytearray(_MAX_BYTES)
    num_bytes = SharedFile.open(path).read([memoryview(content)], 0)
    return Generation.unpack(bytes(content[:num_bytes]))
