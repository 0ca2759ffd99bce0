"""The directories of the SSD tier, before an engine uses them."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from flexkv_core.cli.folders import find_slabs
from flexkv_core.cli.text import bytes_text
from flexkv_core.config import CacheConfig
from flexkv_core.data.tiers.ssd.files import SlabFile, available_bytes
from flexkv_core.identity.as_read import Mounts

__all__ = ["Disk", "disk_notes", "disk_problems", "find_disk"]

_IN_MEMORY = ("tmpfs", "ramfs")


class Disk(msgspec.Struct, kw_only=True):
    """One directory."""

    path: str
    exists: bool
    """If not, all other fields describe the nearest existing folder above it."""

    file_system: str
    direct_io: bool | None
    """Whether the page cache can be bypassed; None if nothing can be written there."""

    device: int
    bytes_free: int
    namespaces: int
    slabs: int
    bytes_on_disk: int
    """Of the slabs."""


def find_disk(directory: Path, mounts: Path | None = None) -> Disk:
    """Inspect one directory; write nothing but one file without a name.

    Args:
        directory: Absolute; may be missing, since engines make it.
        mounts: Where the kernel lists file systems; another file in tests.
    """
    folder = next(each for each in (directory, *directory.parents) if each.is_dir())
    slabs = list(find_slabs(directory, []))
    return Disk(
        path=str(directory),
        exists=directory.is_dir(),
        file_system=Mounts.read(mounts).kind_of(str(folder.resolve())),
        direct_io=_can_be_direct(folder),
        device=folder.stat().st_dev,
        bytes_free=available_bytes(folder),
        namespaces=len({slab.namespace for slab in slabs}),
        slabs=len(slabs),
        bytes_on_disk=sum(_bytes_on_disk(Path(str(slab))) for slab in slabs),
    )


def disk_problems(disks: Sequence[Disk], config: CacheConfig) -> Iterator[str]:
    """Yield why the SSD tier of `config` will not work, and what to do."""
    for disk in disks:
        if disk.direct_io is None:
            what = "nothing can be written there" if disk.exists else "it cannot be made"
            yield f"{disk.path}: {what}: change its owner, or name another ssd_cache_dir"
    asked_bytes = config.ssd_cache_bytes or 0
    room = sum({disk.device: disk.bytes_free for disk in disks}.values())
    room += sum(disk.bytes_on_disk for disk in disks)
    if asked_bytes > room:
        yield (
            f"ssd_cache_gb asks for {bytes_text(asked_bytes)}, but its directories have room for "
            f"{bytes_text(room)}: set it lower, or free some"
        )


def disk_notes(disks: Sequence[Disk]) -> Iterator[str]:
    """Yield what works, but perhaps not as intended."""
    for disk in disks:
        if disk.file_system in _IN_MEMORY:
            yield f"{disk.path} is in memory ({disk.file_system}), not on a disk"
        elif disk.file_system == "overlay":
            yield f"{disk.path} is in a container and lost with it: mount a volume to keep it"
        if disk.direct_io is False:
            yield f"{disk.path}: {disk.file_system} has no direct I/O: the page cache is used"


def _can_be_direct(folder: Path) -> bool | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return SlabFile(file.fileno()).make_direct()
    except OSError:
        return None


def _bytes_on_disk(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * 512
    except OSError:  # an engine has just deleted it
        return 0
