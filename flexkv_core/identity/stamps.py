"""What a file system says about a file: its path, its inode, and when it was changed.

Device numbers are left out: they differ from one boot to the next, and from one mount to another.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from typing_extensions import Self

__all__ = ["Paths", "Stamp"]

_MAX_LINKS = 40
"""On one path; as many as the kernel follows."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """A file, folder or link at one moment: after any change its stamp differs.

    This needs a file system that keeps inodes and times (`shows_changes`), and a change that is not
    within the same tick of its clock.
    """

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def take(cls, path: str) -> Self:
        """Return the stamp of what `path` leads to."""
        return cls._of(path, Path(path).stat())

    @classmethod
    def take_link(cls, path: str) -> Self:
        """Return the stamp of `path` itself, which may be a link."""
        return cls._of(path, Path(path).lstat())

    @classmethod
    def _of(cls, path: str, found: os.stat_result) -> Self:
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def shows_changes(self) -> bool:
        """Whether the file system keeps what reveals a change.

        `mtime_ns` alone may be zero: some archives are made like that.
        """
        return self.inode != 0 and self.ctime_ns != 0

    @property
    def changed_s(self) -> float:
        """When it was last changed, by the clock of the machine that stores it."""
        return max(self.mtime_ns, self.ctime_ns) / 1e9


class Paths:
    """Resolves paths and collects the links on the way; each folder and link is looked up once.

    Thread: one at a time.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._targets: dict[str, str | None] = {}
        self._links: dict[str, Stamp] = {}

    def follow(self, path: str) -> tuple[str, tuple[Stamp, ...]]:
        """Return where an absolute path leads, and the links on the way, in their order.

        Raises:
            OSError: Its links form a loop.
        """
        where, links = "", list[Stamp]()
        rest = list(_parts(path))
        while rest:
            name = rest.pop()
            if name == "..":
                where = where.rpartition("/")[0]
                continue
            here = f"{where}/{name}"
            target = self._target(here)
            if target is None:
                where = here
                continue
            links.append(self._links[here])
            if len(links) > _MAX_LINKS:
                msg = f"the links of {path} form a loop"
                raise OSError(msg)
            where = "" if target.startswith("/") else where
            rest += _parts(target)
        return where or "/", tuple(links)

    def _target(self, path: str) -> str | None:
        """Return the target of a link, None for anything else."""
        if path not in self._targets:
            try:
                self._targets[path] = os.fspath(Path(path).readlink())
                self._links[path] = Stamp.take_link(path)
            except OSError:  # not a link; other errors show when it is opened
                self._targets[path] = None
        return self._targets[path]


def _parts(path: str) -> Iterator[str]:
    """Yield the names in a path, last first."""
    return (name for name in reversed(path.split("/")) if name not in ("", "."))
