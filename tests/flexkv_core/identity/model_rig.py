"""Models in small, and engines that want to know what they hold."""

import hashlib
import itertools
import os
from pathlib import Path

from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.identification import Identification

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STARTED_S = 2_000_000_000.0
"""When the engines of these tests start: what tests write is older, unless they say otherwise."""

NO_HUB = Path("/no/hub")


def add_to_hub(repository, folder, commit=COMMIT):
    """Store a folder as the hub's client does: weights by SHA-256, the rest as git names it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            link = repository / "snapshots" / commit / path.relative_to(folder)
            blob = repository / "blobs" / _name_of(content, path.suffix == ".safetensors")
            for parent in (blob.parent, link.parent):
                parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)


def _name_of(content, is_large):
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


changes = itertools.count(1)


def overwrite(path, offset, content):
    """Change a file in place, to the same size, and not within one tick of the system's clock."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    later_ns = path.stat().st_mtime_ns + next(changes) * 10**9
    os.utime(path, ns=(later_ns, later_ns))


def begin(checkpoints, directory, then):
    if isinstance(checkpoints, Checkpoint):
        checkpoints = {"model": checkpoints}
    return Identification(checkpoints, [directory], STARTED_S, then)


def identify(checkpoints, directory):
    """Return what an engine is told of its model, or of all that it has; None if nothing."""
    told = []
    begin(checkpoints, directory, told.append).join()
    assert len(told) <= 1
    if not told:
        return None
    return told[0]["model"] if isinstance(checkpoints, Checkpoint) else told[0]


def local(path, **settings):
    return Checkpoint(model=str(path), hub_cache=NO_HUB, **settings)


class Times:
    """When files were changed, as tests say: the system lets nobody set that."""

    def __init__(self):
        self._changed_s = {}

    def set(self, changed_s, *paths):
        """Let each path itself, not what it leads to, be changed at a time."""
        for path in paths:
            self._changed_s[str(path.parent.resolve() / path.name)] = changed_s

    def apply(self, stamp):
        changed_s = self._changed_s.get(stamp.path)
        if changed_s is None:
            return stamp
        time_ns = int(changed_s * 1e9)
        return type(stamp)(stamp.path, stamp.inode, stamp.size, time_ns, time_ns)
