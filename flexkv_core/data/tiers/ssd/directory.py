"""One directory of slabs, shared with other ranks, engines and namespaces.

    <directory>/.lock                          held while slabs are added, adopted or deleted
    <directory>/<namespace>/<column>/*.slab
    <directory>/.*.keys                        logs of writers with followers: `key_log`
    <directory>/.*.generation                  current generation of a name: `generations`

A slab that its owner has locked is never touched. An unlocked one is a *leftover*: a process that
can use it adopts it; one that needs its room deletes it, oldest first. An unlocked log is useless.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexkv_core.data.tiers.ssd.files import (
    SlabFile,
    folder_lock,
    replacing,
    unreserved_bytes,
)
from flexkv_core.data.tiers.ssd.format import LOG_SUFFIX, SLAB_SUFFIX, Superblock
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.slab import read_superblock
from flexkv_core.errors import ConfigError, TierError
from flexkv_core.shared_files import make_folder

__all__ = ["Directory", "directories_of", "open_directories", "require_folders"]

logger = logging.getLogger(__name__)

_ALL_SLABS = "[0-9a-f]" * 16 + "/heads-*.layers-*/*" + SLAB_SUFFIX
_ALL_LOGS = f".*{LOG_SUFFIX}*"

_NO_FOLDER = frozenset({errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR})
_ADVICE = {
    errno.ENOSPC: "free space, or lower ssd_cache_gb",
    errno.EDQUOT: "raise the quota, or lower ssd_cache_gb",
    errno.EROFS: "mount it writable",
    errno.ETIMEDOUT: "a stopped engine may hold it",
}


@dataclass(frozen=True, slots=True)
class _Leftover:
    path: Path
    size: int
    modified_s: float
    is_useless: bool
    """Temporary, or without a superblock: it will never be adopted."""


class Directory:
    """Room for slabs. Thread: any; changes to slabs are made within `locked`."""

    def __init__(self, path: Path, cap_bytes: int | None, leftover_bytes: int) -> None:
        """Touch nothing yet; for the limits see `SsdOptions`."""
        self.path = path
        self._cap_bytes = cap_bytes
        self._leftover_bytes = leftover_bytes
        self._failing: set[str] = set()
        """What was last noted to fail: "grow", "be written"."""

    def note(self, what: Literal["grow", "be written"], error: OSError | None) -> None:
        """Log, once each, that slabs here cannot do so, and that they can again."""
        if error is None and what in self._failing:
            self._failing.discard(what)
            logger.warning("ssd.has_room directory=%s: slabs can %s again", self.path, what)
        elif error is not None and what not in self._failing:
            self._failing.add(what)
            advice = _ADVICE.get(error.errno or 0, "check that it can be written to")
            logger.warning(
                "ssd.no_room directory=%s: slabs cannot %s (%s): %s; what is there is still used",
                self.path,
                what,
                error.strerror,
                advice,
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from adding, adopting and deleting slabs.

        Raises:
            OSError: The directory cannot be made or written to.
        """
        make_folder(self.path)
        with folder_lock(self.path):
            yield

    def why_unusable(self) -> str:
        """Return why it cannot be locked now; an empty text if it can."""
        try:
            with self.locked():
                return ""
        except OSError as error:
            return f"{error.strerror}"

    def folder(self, superblock: Superblock) -> Path:
        """Return the folder of a column's slabs."""
        return self.path / superblock.namespace.short / superblock.column

    def make_folder(self, superblock: Superblock) -> Path:
        """Make `folder`; within `locked`."""
        folder = self.folder(superblock)
        make_folder(folder.parent)
        make_folder(folder)
        return folder

    def make_room(self, wanted_bytes: int) -> int:
        """Delete leftovers until slabs may grow by `wanted_bytes`; within `locked`.

        Returns:
            By how much they may grow: `wanted_bytes`, or less if nothing is left to delete.
        """
        self._delete_logs()
        used_bytes, leftovers = self._survey()
        kept_bytes = sum(leftover.size for leftover in leftovers)
        for leftover in leftovers:
            is_enough = self._room(used_bytes) >= wanted_bytes and self._may_stay(kept_bytes)
            if is_enough and not leftover.is_useless:
                break
            if _delete(leftover.path):
                used_bytes -= leftover.size
                kept_bytes -= leftover.size
        return max(0, min(wanted_bytes, self._room(used_bytes)))

    def make_log(self, name: str, content: bytes) -> tuple[Path, SlabFile]:
        """Make a log, replacing any of the same name; call outside `locked`.

        Raises:
            OSError: There is no room.
        """
        path = self.path / name
        with self.locked(), replacing(path) as file:
            file.write([memoryview(content)], 0)
        return path, file

    def _delete_logs(self) -> None:
        """Delete the logs of processes that have ended."""
        for path in self.path.glob(_ALL_LOGS):
            if file := SlabFile.take(path):
                file.unlink(path)
                file.close()

    def _survey(self) -> tuple[int, list[_Leftover]]:
        """Return the bytes of all slabs, and the leftovers in the order of deletion.

        Only one is open at a time: there may be thousands.
        """
        used_bytes = 0
        leftovers = []
        for path in self.path.glob(_ALL_SLABS):
            if file := SlabFile.take(path):
                with closing(file):
                    leftovers.append(_describe(path, file))
                used_bytes += leftovers[-1].size
            else:
                used_bytes += _size_of(path)
        return used_bytes, sorted(
            leftovers, key=lambda slab: (not slab.is_useless, slab.modified_s)
        )

    def _room(self, used_bytes: int) -> int:
        available = unreserved_bytes(self.path)
        return (
            available if self._cap_bytes is None else min(available, self._cap_bytes - used_bytes)
        )

    def _may_stay(self, kept_bytes: int) -> bool:
        return self._cap_bytes is not None or kept_bytes <= self._leftover_bytes


def directories_of(options: SsdOptions) -> list[Directory]:
    """Return the directories of a tier, usable or not."""
    return [
        Directory(path, options.directory_cap_bytes, options.leftover_bytes)
        for path in options.directories
    ]


def require_folders(options: SsdOptions) -> None:
    """Reject directories that can be no folders, before anything is done in them.

    A folder that cannot be used now is none of them: it may be usable later.

    Raises:
        ConfigError: None can be a folder.
    """
    reasons = list(map(_why_no_folder, options.directories))
    if all(reasons):
        msg = f"ssd_cache_dir cannot be used: {_join(options, reasons)}; name a folder"
        raise ConfigError(msg)


def open_directories(options: SsdOptions) -> list[Directory]:
    """Return the directories of a tier, and log which cannot be used now.

    Raises:
        TierError: None of them can be used now.
    """
    directories = directories_of(options)
    reasons = [directory.why_unusable() for directory in directories]
    if all(reasons):
        msg = f"{_join(options, reasons)}; check ssd_cache_dir"
        raise TierError("ssd", msg)
    if any(reasons):
        logger.warning("ssd.directories_unusable %s", _join(options, reasons))
    return directories


def _why_no_folder(path: Path) -> str:
    try:
        make_folder(path)
    except OSError as error:
        return f"{error.strerror}" if error.errno in _NO_FOLDER else ""
    return ""


def _join(options: SsdOptions, reasons: Sequence[str]) -> str:
    places = zip(options.directories, reasons, strict=True)
    return "; ".join(f"{path}: {reason}" for path, reason in places if reason)


def _delete(path: Path) -> bool:
    """Delete a leftover, unless somebody has taken it since it was found."""
    file = SlabFile.take(path)
    if file is None:
        return False
    with closing(file):
        logger.info("ssd.leftover_deleted path=%s bytes=%d", path, file.size)
        file.unlink(path)
        file.truncate(0)  # who reads it may still have it open, but its room is free now
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError):
            folder.rmdir()
    return True


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _describe(path: Path, file: SlabFile) -> _Leftover:
    superblock = read_superblock(file)
    is_useless = superblock is None or superblock.is_temporary
    return _Leftover(path, file.size, file.modified_s, is_useless)
