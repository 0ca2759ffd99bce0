"""Digests of files that were hashed before, shared by the engines that use a directory.

    <directory>/.digests         magic, length, checksum, JSON; replaced as a whole
    <directory>/.digests.lock    held while it is replaced
    <directory>/.hashing         held by the one process that hashes

A file that we would not have written counts as empty, and costs hashing again.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec

from flexkv_core.checked_text import pack_text, unpack_text
from flexkv_core.identity.hashing import Digests
from flexkv_core.identity.stamps import Stamp
from flexkv_core.shared_files import SAFE_FLAGS, hold_lock, is_own_file, make_folder, until

__all__ = ["DigestCache"]

logger = logging.getLogger(__name__)

_NAME = ".digests"
_HASHING = ".hashing"

_MAGIC = b"FLEXKVD1"
_MAX_ENTRIES = 4096
_MAX_BYTES = 4 * 2**20

_LOCK_WAIT_S = 10.0
"""The lock is normally held for milliseconds."""

_HASHING_POLL_S = 0.5
_HASHING_WAIT_S = 600.0
"""Two processes that hash the same take longer each; one that was stopped never ends."""


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    entries: list[tuple[Stamp, Digests]]
    """Least recently used first."""


class DigestCache:
    """Digests by stamp, kept in the first writable directory, or only in memory if there is none.

    A digest is valid only for a file with exactly its stamp; a file with another stamp must be
    hashed again.

    Thread: one at a time.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        """Choose the directory and read what is remembered there."""
        self._folder = next(filter(_is_usable, directories), None)
        self._digests: dict[Stamp, Digests] = {}
        self.reload()

    def get(self, stamp: Stamp) -> Digests | None:
        """Return what is remembered of a file."""
        return self._digests.get(stamp)

    def reload(self) -> None:
        """Add what other processes have remembered since."""
        if self._folder is not None:
            self._digests |= _read(self._folder / _NAME)

    def use(self, digests: Mapping[Stamp, Digests]) -> None:
        """Mark remembered `digests` as just used, so that they are forgotten last."""
        self.remember({stamp: it for stamp, it in digests.items() if stamp in self._digests})

    def remember(self, digests: Mapping[Stamp, Digests]) -> None:
        """Keep digests; the least recently used make room.

        Safe while other processes do the same.
        """
        used = {stamp: it for stamp, it in digests.items() if _is_text(stamp.path)}
        if self._folder is None or not used:
            return
        path = self._folder / _NAME
        try:
            self._digests = _merge_locked(path, used)
        except OSError as error:
            logger.warning("identity.not_remembered path=%s: %s", path, error.strerror)
            self._folder = None  # or each of many files would wait for the lock

    def hashing(self, stop: threading.Event) -> AbstractContextManager[bool]:
        """Wait for the right to hash, among the processes that share the directory.

        Returns:
            A context with whether it is held: False if `stop` was set first, or it took too long.

        Raises:
            OSError: The directory is gone.
        """
        if self._folder is None:
            return nullcontext(enter_result=True)
        end_s = time.monotonic() + _HASHING_WAIT_S
        return hold_lock(
            self._folder / _HASHING,
            lambda: stop.wait(_HASHING_POLL_S) or time.monotonic() > end_s,
        )


def _is_usable(folder: Path) -> bool:
    try:
        make_folder(folder)
        with hold_lock(folder / _HASHING, gives_up=lambda: True):
            return True
    except OSError:
        return False


def _merge_locked(path: Path, used: Mapping[Stamp, Digests]) -> dict[Stamp, Digests]:
    with hold_lock(path.with_name(path.name + ".lock"), until(_LOCK_WAIT_S)) as is_held:
        if not is_held:
            raise OSError(errno.ETIMEDOUT, "its lock is held by another process")
        return _merge(path, used)


def _merge(path: Path, used: Mapping[Stamp, Digests]) -> dict[Stamp, Digests]:
    """Merge what was used into the file, writing it only if changed; return its new content."""
    before = list(_read(path).items())
    after = [entry for entry in before if entry[0] not in used]
    after += sorted(used.items(), key=lambda entry: entry[0].path)
    after = after[-_MAX_ENTRIES:]
    if after != before:
        _replace(path, _pack(after))
    return dict(after)


def _pack(entries: list[tuple[Stamp, Digests]]) -> bytes:
    """Return the file's content; while it is too large, the older half is dropped."""
    content = pack_text(_MAGIC, _Content(entries))
    return content if len(content) <= _MAX_BYTES else _pack(entries[-(len(entries) // 2) :])


def _read(path: Path) -> dict[Stamp, Digests]:
    """Return what is remembered; nothing if the file is missing, not this user's, or damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | SAFE_FLAGS)
        with os.fdopen(fd, "rb") as file:
            content = file.read(_MAX_BYTES) if is_own_file(fd) else b""
    except OSError:
        return {}
    found = unpack_text(_MAGIC, content, _Content)
    return dict(found[0].entries) if found and found[1] == len(content) else {}


def _replace(path: Path, content: bytes) -> None:
    """Replace a file. Not flushed: a crash may damage it, and the checksum shows that."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_FLAGS, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    new.replace(path)


def _is_text(path: str) -> bool:
    """Return whether a name can be written in JSON: the kernel allows any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
