"""The boundary to the operating system: every system call of the tier on a file is in here.

All functions raise OSError and nothing else.
"""

import errno
import fcntl
import mmap
import os
import resource
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from typing_extensions import Self

from flexkv_core.data.tiers.ssd.format import PAGE_BYTES
from flexkv_core.shared_files import (
    SAFE_FLAGS,
    close_file,
    hold_lock,
    is_own_file,
    try_lock,
    until,
)

__all__ = [
    "HeaderFile",
    "OpenFile",
    "SharedFile",
    "SlabFile",
    "available_bytes",
    "empty_durably",
    "folder_lock",
    "num_spare_files",
    "remove_durably",
    "replacing",
    "unreserved_bytes",
    "write_durably",
]

_CANNOT_ALLOCATE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""As on ext2: the C library then writes single bytes, and with direct I/O those fail with EINVAL.
Space is not reserved by growing the file, only by writing all of it."""

_ZEROS = memoryview(mmap.mmap(-1, 1 << 20))
"""Page-aligned, as O_DIRECT requires; never written."""

_MAX_STALLS = 8
"""How often a direct read may return less than a page before the end of the file."""

_FLAGS = os.O_RDWR | SAFE_FLAGS
_RESERVED_PART = 20
_MAX_RESERVE_BYTES = 10 << 30

_UNFINISHED = ".new"
_LOCK_NAME = ".lock"
_LOCK_WAIT_S = 10.0
"""A folder's lock is held while a slab grows or leftovers are deleted: seconds at worst."""


class OpenFile:
    """An open file, and how to read it.

    Thread: `read` any, several at once; everything else one at a time.
    """

    def __init__(self, fd: int) -> None:
        """Read from `fd`."""
        self.fd = fd
        self.is_direct = False

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fd).st_size

    @property
    def is_unlinked(self) -> bool:
        """Whether it has lost its name and can no longer be found."""
        try:
            return os.fstat(self.fd).st_nlink == 0
        except OSError:  # "stale" on a network file system
            return True

    def make_direct(self) -> bool:
        """Bypass the page cache from here on, if the file system supports that."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(self.fd, [mmap.mmap(-1, PAGE_BYTES)], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)
            return False
        self.is_direct = True
        return True

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill `buffers` from `offset`; return the number of bytes before the end of the file."""
        num_bytes = sum(map(len, buffers))
        done = num_stalls = 0
        while done < num_bytes:
            moved = os.preadv(self.fd, buffers, offset + done)
            step = self._whole(moved, num_bytes - done)
            if step == 0 and (moved == 0 or offset + done + moved >= self.size):
                break
            num_stalls += step == 0
            if num_stalls > _MAX_STALLS:
                raise OSError(errno.EIO, "a read made no progress")
            done += step
            buffers = _skip(buffers, step)
        return done

    def _whole(self, step: int, wanted: int) -> int:
        """Return how much of an incomplete transfer counts: direct ones resume at a page."""
        return step - step % PAGE_BYTES if self.is_direct and step < wanted else step


class SharedFile(OpenFile):
    """A file that another process of this user writes, open for reading until garbage-collected."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open `path`.

        Raises:
            OSError: It is missing, or not a plain file of this user.
        """
        with ExitStack() as undo:
            fd = os.open(path, os.O_RDONLY | SAFE_FLAGS)
            undo.callback(close_file, fd)
            if not is_own_file(fd):
                raise OSError(errno.EPERM, "not a plain file of this user")
            undo.pop_all()
            file = cls(fd)
            weakref.finalize(file, os.close, fd)
            return file

    def is_named(self, path: Path) -> bool:
        """Return whether `path` is still its name."""
        try:
            return os.path.samestat(os.lstat(path), os.fstat(self.fd))
        except OSError:
            return False


class SlabFile(OpenFile):
    """An open file that only this process uses, ensured by a lock that ends with the process.

    Use `create` or `take`.

    Thread: `read` and `write` any, several at once; everything else one at a time.
    """

    @classmethod
    def create(cls, path: Path) -> Self | None:
        """Make an empty file; None if the name is taken. Call under the lock of the folder.

        Raises:
            OSError: The file system refuses, has no locks, or gives the file to another user; no
                file is left behind.
        """
        try:
            fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return None
        with ExitStack() as undo:
            undo.callback(path.unlink)
            file = cls._locked(fd)
            if file is None:
                raise OSError(errno.EPERM, "new files here belong to another user")
            undo.pop_all()
            return file

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Open an unlocked file of this user; None if it is locked, gone, or another user's."""
        try:
            return cls._locked(os.open(path, _FLAGS))
        except OSError:
            return None

    @classmethod
    def _locked(cls, fd: int) -> Self | None:
        """Lock `fd`, or close it if it is locked, deleted, or not a plain file of this user."""
        with ExitStack() as undo:
            undo.callback(close_file, fd)
            if not try_lock(fd):
                return None
            if not is_own_file(fd) or os.fstat(fd).st_nlink == 0:
                return None
            undo.pop_all()
            return cls(fd)

    @property
    def modified_s(self) -> float:
        """When it was last written or adopted, in wall-clock time."""
        return os.fstat(self.fd).st_mtime

    def write(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Write all of `buffers` at `offset`."""
        num_bytes = sum(map(len, buffers))
        done = 0
        while done < num_bytes:
            step = self._whole(os.pwritev(self.fd, buffers, offset + done), num_bytes - done)
            if step == 0:
                raise OSError(errno.EIO, "a write made no progress")
            done += step
            buffers = _skip(buffers, step)

    def allocate(self, size: int) -> None:
        """Grow the file to `size`, with disk space reserved for it."""
        before = self.size
        try:
            self._reserve(before, size)
        except OSError:
            os.ftruncate(self.fd, before)
            raise

    def _reserve(self, start: int, end: int) -> None:
        try:
            os.posix_fallocate(self.fd, start, end - start)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
            for offset in range(start, end, len(_ZEROS)):
                self.write([_ZEROS[: end - offset]], offset)

    def truncate(self, size: int) -> None:
        """Truncate the file to `size`."""
        os.ftruncate(self.fd, size)

    def sync(self) -> None:
        """Make what was written survive a loss of power."""
        os.fsync(self.fd)

    def touch(self) -> None:
        """Mark the file as used now: leftovers are deleted oldest first."""
        os.utime(self.fd)

    def unlink(self, path: Path) -> None:
        """Delete the file, if `path` is still its name."""
        try:
            if os.path.samestat(os.lstat(path), os.fstat(self.fd)):
                path.unlink()
        except FileNotFoundError:
            return

    def close(self) -> None:
        """Unlock it. No call may be in flight: the next file opened gets its descriptor."""
        close_file(self.fd)


def _skip(buffers: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """Return what is left of `buffers` after their first `num_bytes`."""
    rest = list(buffers)
    while rest and num_bytes >= len(rest[0]):
        num_bytes -= len(rest.pop(0))
    if num_bytes:
        rest[0] = rest[0][num_bytes:]
    return rest


class HeaderFile:
    """A second, buffered descriptor of a slab, by which one thread reads many headers fast.

    `prefetch` only requests a page: the disk works on hundreds at once while Python decodes those
    that have arrived. This reads 60 000 to 90 000 headers a second, 8 threads with O_DIRECT read
    40 000 to 55 000 (2 cores of an AMD EPYC virtual machine, slots of 8 and 68 KiB, November
    2026). It holds no lock, and keeps working after the slab was closed.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, a slab that this process has locked."""
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def prefetch(self, offset: int) -> None:
        """Start reading the page at `offset`."""
        os.posix_fadvise(self._fd, offset, PAGE_BYTES, os.POSIX_FADV_WILLNEED)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return `num_bytes` from `offset`, fewer at the end of the file."""
        content = more = os.pread(self._fd, num_bytes, offset)
        while more and len(content) < num_bytes:
            more = os.pread(self._fd, num_bytes - len(content), offset + len(content))
            content += more
        return content

    def drop(self, offset: int, num_bytes: int) -> None:
        """Drop what was read from the page cache."""
        os.posix_fadvise(self._fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file."""
        close_file(self._fd)


def available_bytes(folder: Path) -> int:
    """Return the bytes that the file system of `folder` still has for users."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def num_spare_files() -> int:
    """Return how many files this process may open before it has half of those that it may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return max(0, limit // 2 - len(list(Path("/proc/self/fd").iterdir())))
    except OSError:  # none is left to look with
        return 0


def unreserved_bytes(folder: Path) -> int:
    """Return the bytes that slabs may take of the file system of `folder`, below 0 if too many.

    A 20th of a file system, or 10 GiB of a large one, is reserved for whatever else is there: a
    cache must not be why a log or a checkpoint cannot be written.
    """
    found = os.statvfs(folder)
    reserve_bytes = min(found.f_blocks * found.f_frsize // _RESERVED_PART, _MAX_RESERVE_BYTES)
    return available_bytes(folder) - reserve_bytes


@contextmanager
def replacing(path: Path) -> Iterator[SlabFile]:
    """Yield a new file that takes the name `path` in the end; call under the lock of the folder.

    If the `with` block fails, the file is closed and deleted; otherwise it is the caller's.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    unfinished.unlink(missing_ok=True)
    file = SlabFile.create(unfinished)
    assert file is not None, "files are made only under the lock"
    with ExitStack() as undo:
        undo.callback(file.close)
        undo.callback(unfinished.unlink)
        yield file
        unfinished.replace(path)
        undo.pop_all()


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that it survives a loss of power; call under the folder's lock.

    Raises:
        OSError: `path` may hold its old content or the new one.
    """
    with replacing(path) as file:
        file.write([memoryview(content)], 0)
        file.sync()
    file.close()
    _sync_folder(path.parent)


def empty_durably(path: Path) -> None:
    """Make `path` an empty file, even after a loss of power; this needs no disk space.

    Raises:
        OSError: `path` may hold its old content, or be missing.
    """
    fd = os.open(path, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.fsync(fd)
    finally:
        close_file(fd)
    _sync_folder(path.parent)


def remove_durably(path: Path) -> None:
    """Delete `path`, if it exists, so that it stays deleted after a loss of power."""
    path.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock under which files are added to and deleted from `folder`.

    Raises:
        OSError: The folder cannot be written to, or another process holds the lock for too long.
    """
    with hold_lock(folder / _LOCK_NAME, until(_LOCK_WAIT_S)) as is_held:
        if not is_held:
            raise OSError(errno.ETIMEDOUT, f"{_LOCK_NAME} is held by another process")
        yield


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system does not support it
            raise
    finally:
        close_file(fd)
