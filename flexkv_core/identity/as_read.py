"""Whether the files of a model are those that an engine read when it started.

A file in the cache of the hub's client is proven if its name is the digest of its content, no
matter when it was written. Any other file, each link on the way to it and the model's own folder
must be older than the engine, and stay unchanged until the content is known. Folders above the
model do not count: other files there do no harm.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Self

from flexkv_core.identity.checkpoint import (
    Checkpoint,
    find_checkpoint,
    is_commit,
    model_files,
    repository_of,
    why_elsewhere,
)
from flexkv_core.identity.hashing import Digests
from flexkv_core.identity.stamps import Paths, Stamp

__all__ = ["FoundFile", "Judge", "Mounts", "Survey", "survey", "why_changed"]

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = frozenset(
    {
        "bcachefs",
        "btrfs",
        "erofs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "overlay",
        "ramfs",
        "squashfs",
        "tmpfs",
        "xfs",
        "zfs",
    }
)
"""File systems whose times come from this machine's clock."""

_ALLOWANCE_S = 300.0
"""How far another clock may lag behind ours. A file server stamps a change by its own clock: if it
lags, a change after the engine's start looks older than the start. If it is ahead, old files look
newer, which costs a tier but never yields a wrong block."""

_BLOB = re.compile(r"(.*/models--[^/]+)/blobs/([0-9a-f]{64}|[0-9a-f]{40})")
_SNAPSHOT = re.compile(r"(.*/models--[^/]+)/snapshots/[0-9a-f]{40}(/.*)?")

_GIT_DIGITS = 40

_WHAT_TO_DO = "restart the engine"


class FoundFile(NamedTuple):
    """A file that decides a model's KV."""

    name: str
    """Relative to the model, with slashes."""

    stamp: Stamp
    """At its real path."""

    links: tuple[Stamp, ...]
    """The links from the model's given path to the file."""

    @property
    def is_named_by_git(self) -> bool:
        """Whether git's digest is needed to prove its content."""
        return self.blob is not None and len(self.blob) == _GIT_DIGITS

    @property
    def blob(self) -> str | None:
        """The digest by which the hub's client named it, if it did."""
        match = _BLOB.fullmatch(self.stamp.path)
        return match[2] if match else None


class Survey(NamedTuple):
    """A model's files as found at one moment."""

    files: tuple[FoundFile, ...]
    folders: tuple[Stamp, ...] = ()
    """The model's own folder, and those within it that contain its files."""

    reference: Stamp | None = None
    """The file that selects one of several snapshots."""


class Mounts:
    """Which kind of file system a path is on."""

    def __init__(self, table: str) -> None:
        """Parse a table in the format of Linux's mountinfo."""
        self._kinds: dict[str, str] = {}
        for line in filter(None, table.split("\n")):
            mount, _, filesystem = line.partition(" - ")
            point = mount.split(" ")[4]
            # A later mount hides an earlier one at the same point.
            self._kinds[_unescaped(point)] = filesystem.split(" ")[0]

    @classmethod
    def read(cls, path: Path | None = None) -> Self:
        """Return those of this process; none, so that nothing is local, if they cannot be read."""
        try:
            return cls((path or _MOUNTS).read_text("utf-8", "surrogateescape"))
        except OSError:
            return cls("")

    def kind_of(self, path: str) -> str:
        """Return the type of the file system that a real path is on; "unknown" if it is not."""
        while path and path not in self._kinds:
            path = path.rpartition("/")[0]
        return self._kinds.get(path or "/", "unknown")

    def is_local(self, path: str) -> bool:
        """Return whether the times at a real path come from this machine's clock."""
        return self.kind_of(path) in _LOCAL


def survey(checkpoint: Checkpoint) -> Survey | str:
    """Return the files of a checkpoint, or a clause for people on why they cannot identify it.

    Raises:
        OSError: Something cannot be read.

    Cost: one stat per file, and one look at each folder and link.
    """
    model, load_format = checkpoint.model, checkpoint.load_format
    path = find_checkpoint(model, checkpoint.revision, hub_cache=checkpoint.hub_cache)
    if path is None:
        reason = f"the files of {model} are not on this machine: set weight_version"
        return reason if checkpoint.weights else Survey(())
    elsewhere = why_elsewhere(path, checkpoint)
    if elsewhere is not None:
        return elsewhere
    paths = Paths()
    base = Path.cwd() / path
    files, folders = list[FoundFile](), set[str]()
    if base.is_dir():
        folders.add(paths.follow(str(base))[0])
    for file in model_files(base, load_format, weights=checkpoint.weights):
        real, links = paths.follow(str(file))
        name = file.relative_to(base).as_posix() if folders else file.name
        files.append(FoundFile(name, Stamp.take(real), links))
        if file.parent != base and folders:
            folders.add(paths.follow(str(file.parent))[0])
    reference = None if Path(model).exists() else _reference_of(checkpoint)
    return Survey(tuple(files), tuple(map(Stamp.take, sorted(folders))), reference)


def why_changed(before: Survey, after: Survey) -> str | None:
    """Return why two surveys differ, naming a changed file or folder; None if they do not."""
    changed = sorted(set(before.files) ^ set(after.files), key=lambda file: file.name)
    folders = {*before.folders} ^ {*after.folders}
    names = [file.name for file in changed]
    names += sorted({folder.path for folder in folders if not _SNAPSHOT.fullmatch(folder.path)})
    if not names:
        return None
    return f"{names[0]} was changed while it was being identified: {_WHAT_TO_DO}"


class Judge:
    """Decides whether files may differ from what an engine read."""

    def __init__(self, started_s: float, mounts: Mounts) -> None:
        """Judge for an engine that started at `started_s`, in wall-clock time."""
        self._started_s = started_s
        self._mounts = mounts

    def is_older(self, stamp: Stamp, than_s: float) -> bool:
        """Return whether something was certainly last changed before `than_s`."""
        allowance_s = 0.0 if self._mounts.is_local(stamp.path) else _ALLOWANCE_S
        return stamp.changed_s < than_s - allowance_s

    def why_not(self, found: Survey, digests: Mapping[Stamp, Digests]) -> str | None:
        """Return a clause naming what may have changed since the engine read it; None if nothing.

        Args:
            found: The files as they are now.
            digests: Of the files whose content is known; the others are given the benefit of the
                doubt.
        """
        if found.reference is not None:
            reason = self._why_newer(f"the revision in {found.reference.path}", found.reference)
            if reason is not None:
                return reason
        proven = {file for file in found.files if _is_proven(file, digests.get(file.stamp))}
        reasons = (self._why_not_file(file, is_proven=file in proven) for file in found.files)
        reason = next(filter(None, reasons), None)
        # A snapshot's folder changes whenever the hub's client fetches one more of its files.
        if reason is None and not (len(proven) == len(found.files) and _in_cache(found.folders)):
            reason = self._why_not_folders(found.folders)
        return reason

    def _why_not_file(self, file: FoundFile, *, is_proven: bool) -> str | None:
        reason = self._why_newer(file.name, file.stamp)
        if reason is not None and not is_proven:
            return reason
        for link in file.links:
            # The hub's client makes a link for each file that it has fetched. It also makes a new
            # link to an old file, for a commit that shares files with another; but such a link may
            # have been redirected by someone else, so in that case nothing outlives this run.
            is_fetched = reason is not None and _is_of_hub(link, file)
            reason_of_link = self._why_newer(f"the link {link.path}", link)
            if reason_of_link is not None and not is_fetched:
                return reason_of_link
        return None

    def _why_not_folders(self, folders: Iterable[Stamp]) -> str | None:
        reasons = (self._why_newer(f"the folder {it.path}", it) for it in folders)
        return next(filter(None, reasons), None)

    def _why_newer(self, what: str, stamp: Stamp) -> str | None:
        """Return why something may have changed since the engine's start; None if it cannot."""
        if not stamp.shows_changes:
            return f"the file system keeps no time of {what}: copy the model to another"
        if self.is_older(stamp, self._started_s):
            return None
        when = "was written after the engine had started"
        if stamp.changed_s < self._started_s:
            when += f", or less than {_ALLOWANCE_S:.0f} s before it by another machine's clock"
        return f"{what} {when}: {_WHAT_TO_DO}"


def _is_proven(file: FoundFile, digests: Digests | None) -> bool:
    return file.blob is not None and (digests is None or digests.include(file.blob))


def _is_of_hub(link: Stamp, file: FoundFile) -> bool:
    """Return whether a link is the hub client's own, to a file of the same repository."""
    snapshot, blob = _SNAPSHOT.fullmatch(link.path), _BLOB.fullmatch(file.stamp.path)
    return snapshot is not None and blob is not None and snapshot[1] == blob[1]


def _in_cache(folders: Iterable[Stamp]) -> bool:
    return all(_SNAPSHOT.fullmatch(folder.path) for folder in folders)


def _reference_of(checkpoint: Checkpoint) -> Stamp | None:
    """Return the stamp of the file that selects the snapshot of a hub id, if several exist."""
    revision = checkpoint.revision or "main"
    repository = repository_of(checkpoint.model, checkpoint.hub_cache)
    if is_commit(revision) or _holds_one(repository / "snapshots"):
        return None
    return Stamp.take(str(repository / "refs" / revision))


def _holds_one(folder: Path) -> bool:
    return len(list(folder.iterdir())) == 1


def _unescaped(point: str) -> str:
    """Return a mount point unescaped: the kernel writes blanks as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
