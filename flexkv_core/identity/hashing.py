"""Reads whole files for their digests, without getting in anyone's way.

The page cache is left as it was: what is read from disk does not stay in it. The disk serves all
other reads first, and a slow network share is kept busy at most half of the time.
"""

import ctypes
import errno
import os
import platform
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha1, sha256
from typing import Annotated

import msgspec

__all__ = ["Digests", "FileHasher", "digest_of_files", "yield_to_others"]

_CHUNK_BYTES = 4 * 2**20

_NICEST = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_THIS_THREAD = (1, 0)
_IOPRIO_IDLE = 3 << 13


class Digests(msgspec.Struct, frozen=True, array_like=True):
    """What identifies the content of a file."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    git: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")] | None = None
    """Git's own name for the content; None if it was not asked for."""

    def include(self, name: str) -> bool:
        """Return whether `name` is one of the digests."""
        return name in (self.sha256, self.git)


class FileHasher:
    """Hashes files, one after the other, through one buffer.

    Thread: the one that hashes.
    """

    def __init__(self, stop: threading.Event, progress: Callable[[int], None]) -> None:
        """Prepare.

        Args:
            stop: Ends the work soon after it is set.
            progress: Called with the number of bytes hashed since the last call.
        """
        self._stop = stop
        self._progress = progress
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))

    def hash(self, path: str, *, for_git: bool) -> Digests | None:
        """Return the digests of a file, None if stopped first.

        Args:
            path: A plain file.
            for_git: Whether to compute git's digest, too.

        Raises:
            OSError: It cannot be read.
        """
        with _opened(path) as fd:
            content = sha256()
            # Git's name for the content, not a safeguard: the identity uses SHA-256 alone.
            as_git = sha1(b"blob %d\0" % os.fstat(fd).st_size, usedforsecurity=False)
            offset = 0
            while not self._stop.is_set():
                chunk = self._read(fd, offset)
                if not chunk:
                    return Digests(content.hexdigest(), as_git.hexdigest() if for_git else None)
                content.update(chunk)
                if for_git:
                    as_git.update(chunk)
                offset += len(chunk)
                self._progress(len(chunk))
        return None

    def _read(self, fd: int, offset: int) -> memoryview:
        """Return the next bytes, none at the end; leave nothing new in the page cache."""
        num_cached = self._read_cached(fd, offset)
        if num_cached == len(self._buffer):
            return self._buffer
        begin_s = time.monotonic()
        # Read on at once: where the cache ended, the kernel has begun to read what we asked for.
        num_read = os.preadv(fd, [self._buffer[num_cached:]], offset + num_cached)
        os.posix_fadvise(fd, offset + num_cached, num_read, os.POSIX_FADV_DONTNEED)
        self._stop.wait(time.monotonic() - begin_s)
        return self._buffer[: num_cached + num_read]

    def _read_cached(self, fd: int, offset: int) -> int:
        """Read what is in the page cache up to the first gap; return its length."""
        try:
            return os.preadv(fd, [self._buffer], offset, os.RWF_NOWAIT)
        except OSError:  # nothing is cached, or the file system does not support the flag
            return 0


def digest_of_files(digests: Mapping[str, Digests]) -> bytes:
    """Return 32 bytes that are equal if and only if the files' names and contents are."""
    # Every part has a fixed length, so that no two lists give the same bytes.
    parts = [
        sha256(os.fsencode(name)).digest() + bytes.fromhex(found.sha256)
        for name, found in sorted(digests.items())
    ]
    return sha256(b"flexkv-model-v2" + b"".join(parts)).digest()


def yield_to_others() -> None:
    """Give the calling thread the lowest CPU and disk priority, as far as possible."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, *_IOPRIO_THIS_THREAD, _IOPRIO_IDLE)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a plain file, without reading ahead."""
    # Without O_NONBLOCK, opening a named pipe would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _demand_plain(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        yield fd
    except OSError as error:
        error.filename = path  # calls on a descriptor leave it out
        raise
    finally:
        os.close(fd)


def _demand_plain(fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a plain file")
