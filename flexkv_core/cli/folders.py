"""Finds slabs and opens them. Symbolic links below the named directory are never followed."""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flexkv_core.data.tiers.ssd.format import SLAB_SUFFIX

__all__ = [
    "Oddity",
    "SlabPath",
    "find_slabs",
    "is_locked",
    "is_private",
    "lock",
    "make_private",
    "open_folder",
    "open_slab",
    "reason_of",
]

_NAMESPACE = re.compile(r"[0-9a-f]{16}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK, opening a named pipe would wait for ever.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_FOLDERS_OF_SLAB = (".", "..")  # seen from a column: itself, its namespace
_OTHERS = 0o077
_REASONS: Mapping[int | None, str] = {
    errno.ELOOP: "a symbolic link, which is not followed",
    errno.ENOTDIR: "not a directory, or a symbolic link to one, which is not followed",
}


@dataclass(frozen=True, slots=True)
class SlabPath:
    """Where a slab is."""

    directory: Path
    namespace: str
    column: str
    name: str

    def __str__(self) -> str:
        return str(self.directory / self.namespace / self.column / self.name)


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something among the slabs that could not be read as a slab."""

    path: str
    reason: str
    bytes_on_disk: int = 0
    """Its size, as far as that is known."""


def find_slabs(directory: Path, oddities: list[Oddity], prefix: str = "") -> Iterator[SlabPath]:
    """Yield every slab of `directory` in the order of names; add anything else to `oddities`.

    Only namespaces that begin with `prefix` are searched. Hidden names, and names that do not look
    like a namespace, are skipped: they are not ours.
    """
    for namespace in _list(oddities, directory):
        if not _NAMESPACE.fullmatch(namespace) or not namespace.startswith(prefix):
            continue
        for column in _list(oddities, directory, namespace):
            for name in _list(oddities, directory, namespace, column):
                slab = SlabPath(directory, namespace, column, name)
                if name.endswith(SLAB_SUFFIX):
                    yield slab
                else:
                    oddities.append(Oddity(str(slab), "not a slab"))


@contextmanager
def open_folder(directory: Path, *folders: str) -> Iterator[int]:
    """Open the last of `folders`, each of which is inside the one before it, below `directory`.

    Raises:
        OSError: One cannot be opened, or is a symbolic link; only `directory` may be one.
    """
    with ExitStack() as opened:
        number = os.open(directory, _FOLDER)
        opened.callback(os.close, number)
        for folder in folders:
            number = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=number)
            opened.callback(os.close, number)
        yield number


@contextmanager
def open_slab(slab: SlabPath, mode: int = os.O_RDONLY) -> Iterator[int]:
    """Open a slab.

    Raises:
        OSError: It cannot be opened, or is not a plain file.
    """
    with open_folder(slab.directory, slab.namespace, slab.column) as folder:
        number = os.open(slab.name, mode | _FILE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(0, "not a plain file")
        # Headers are far apart, payloads are read in large pieces: reading ahead gains nothing.
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
        yield number
    finally:
        os.close(number)


def reason_of(error: OSError) -> str:
    """Return why something below a directory could not be used."""
    return _REASONS.get(error.errno) or error.strerror or str(error)


def is_locked(number: int) -> bool:
    """Return whether another process uses the open slab. Drops any lock that `number` holds.

    A lock that cannot be queried counts as held by another process.
    """
    # Shared, so that two of these commands do not mistake each other for an engine.
    is_free = _try_lock(number, fcntl.LOCK_SH)
    if is_free:
        fcntl.flock(number, fcntl.LOCK_UN)
    return not is_free


def lock(number: int) -> bool:
    """Lock the open slab for this process until it is closed; return whether that succeeded."""
    return _try_lock(number, fcntl.LOCK_EX)


def is_private(number: int, path: SlabPath) -> bool:
    """Return whether no other user can read the open slab at `path`, or change its folders."""
    with open_folder(path.directory, path.namespace, path.column) as column:
        folders = [os.stat(folder, dir_fd=column) for folder in _FOLDERS_OF_SLAB]
    return not any(status.st_mode & _OTHERS for status in (os.fstat(number), *folders))


def make_private(number: int, path: SlabPath) -> None:
    """Deny other users access to the open slab at `path` and its folders."""
    with open_folder(path.directory, path.namespace, path.column) as column:
        for folder in _FOLDERS_OF_SLAB:
            os.chmod(folder, 0o700, dir_fd=column)
    os.fchmod(number, 0o600)


def _try_lock(number: int, kind: int) -> bool:
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _list(oddities: list[Oddity], directory: Path, *folders: str) -> list[str]:
    """Return the sorted names in a folder; none, and an oddity, if it cannot be read."""
    try:
        with open_folder(directory, *folders) as folder, os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        oddities.append(Oddity(str(directory.joinpath(*folders)), reason_of(error)))
        return []
