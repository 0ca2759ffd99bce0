"""Files in directories that several processes share: opened safely, checked, and locked.

A lock is a `flock`: advisory, and released with the process that holds it, however that ends.
"""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["SAFE_FLAGS", "hold_lock", "is_own_file", "make_folder", "try_lock", "until"]

SAFE_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""For every open: someone else may have put a link, a pipe or a device under the name."""

_POLL_S = 0.01


def make_folder(path: Path) -> None:
    """Make `path`, and what is missing above it, for this user alone.

    Raises:
        OSError: It cannot be made, or is no folder.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        make_folder(path.parent)  # `mkdir(parents=True)` would let the umask choose their modes
        path.mkdir(mode=0o700, exist_ok=True)


def is_own_file(fd: int) -> bool:
    """Return whether an open file is a plain file of this user."""
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def try_lock(fd: int) -> bool:
    """Lock an open file, unless another process has locked it.

    Raises:
        OSError: Its file system has no locks.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def hold_lock(path: Path, gives_up: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock file `path`, creating it if it is missing.

    Args:
        path: The lock file.
        gives_up: Waits a moment, then returns whether to stop waiting; called while another process
            holds the lock.

    Yields:
        Whether the lock is held: False if `gives_up` returned True first.

    Raises:
        OSError: The folder cannot be written to, or its file system has no locks.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | SAFE_FLAGS, 0o600)
    try:
        is_held = try_lock(fd)
        while not is_held and not gives_up():
            is_held = try_lock(fd)
        yield is_held
    finally:
        with suppress(OSError):
            # Closing is not enough: a child that was forked meanwhile has the file open as well.
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def until(seconds: float) -> Callable[[], bool]:
    """Return a `gives_up` for `hold_lock` that waits up to `seconds` from now."""
    end_s = time.monotonic() + seconds

    def gives_up() -> bool:
        time.sleep(_POLL_S)
        return time.monotonic() > end_s

    return gives_up
