"""How much memory the host tier may use, within the limits of containers.

The tier is a memfd. Its pages are shared memory: charged to the cgroup of the process that first
touches them, never reclaimed if there is no swap, and bounded by that cgroup and the machine, not
by the size of /dev/shm. So the bound is the tightest of `MemAvailable` and every memory cgroup from
this process's own up to the root.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from flexkv_core.errors import ConfigError

__all__ = ["HostMemory", "check_host_bytes", "default_cache_bytes", "host_memory", "limit_bytes"]

_GIB = 2**30
_RESERVE_BYTES = 2 * _GIB
"""Left to the engine, which still grows after the cache is made: inputs, graphs, buffers."""

_MAX_DEFAULT_BYTES = 256 * _GIB
_ROOT = Path("/")


class HostMemory(NamedTuple):
    """Memory that can still be used, and what bounds it."""

    free_bytes: int
    total_bytes: int
    limit: str
    """For a person: the machine's memory or a container's limit."""


class _Cgroups(NamedTuple):
    """File names of one version of the memory controller."""

    mounts: tuple[str, ...]
    limits: tuple[str, ...]
    usage: str
    caches: tuple[str, ...]
    """Rows of memory.stat: file pages, which the kernel reclaims before it refuses memory."""


_V1 = _Cgroups(
    mounts=("sys/fs/cgroup/memory",),
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    caches=("total_active_file", "total_inactive_file"),
)
_V2 = _Cgroups(
    mounts=("sys/fs/cgroup", "sys/fs/cgroup/unified"),
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    caches=("active_file", "inactive_file"),
)


def host_memory(root: Path = _ROOT) -> HostMemory:
    """Return what is free on this machine for this process.

    Args:
        root: The root of the file system; another one in tests.
    """
    meminfo = _read_table(root / "proc/meminfo")
    total, available = meminfo["MemTotal:"] * 1024, meminfo["MemAvailable:"] * 1024
    machine = HostMemory(available, total, f"this machine has {_gib(total)} GiB")
    return min([machine, *_cgroup_bounds(root)], key=lambda memory: memory.free_bytes)


def limit_bytes(root: Path = _ROOT) -> int:
    """Return what this process might use if nothing else ran beside it; `root` as above."""
    total = _read_table(root / "proc/meminfo")["MemTotal:"] * 1024
    return min([total, *(bound.total_bytes for bound in _cgroup_bounds(root))])


def default_cache_bytes(num_processes_on_node: int, root: Path = _ROOT) -> int:
    """Return the size of a host tier for which the user set none, 0 if there is no room.

    It is half of what is free after the engine's reserve, divided among the engines of the node:
    the page cache that holds the weights counts as free, and whatever else will start here needs
    room too. At most 256 GiB for all of them: a tier is touched and pinned before its engine
    serves, so a longer wait is for the user to choose.

    Args:
        num_processes_on_node: Engines on this machine that each make a tier of this size.
        root: As in `host_memory`.
    """
    spare_bytes = host_memory(root).free_bytes - _RESERVE_BYTES
    return min(max(0, spare_bytes) // 2, _MAX_DEFAULT_BYTES) // num_processes_on_node


def check_host_bytes(asked: int, root: Path = _ROOT) -> None:
    """Reject a host tier so large that the kernel would kill the engine.

    Args:
        asked: Bytes of all tiers that are about to be made on this machine.
        root: As in `host_memory`.

    Raises:
        ConfigError: They do not fit beside the engine's reserve.
    """
    memory = host_memory(root)
    spare_bytes = memory.free_bytes - _RESERVE_BYTES
    if asked <= spare_bytes:
        return
    advice = (
        f"set cpu_cache_gb to at most {_gib(spare_bytes)}"
        if spare_bytes >= _GIB // 10
        else "free memory, or give the container more"
    )
    msg = (
        f"cpu_cache_gb asks for {_gib(asked)} GiB, but only {_gib(memory.free_bytes)} GiB are free "
        f"here ({memory.limit}) and the engine needs {_gib(_RESERVE_BYTES)} of them: {advice}"
    )
    raise ConfigError(msg)


def _cgroup_bounds(root: Path) -> Iterator[HostMemory]:
    """Yield what every limited memory cgroup above this process leaves free."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _V1 if controllers else _V2
        for mount in version.mounts:
            for folder in _lineage(root / mount, path):
                yield from _bound(folder, version)


def _lineage(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a cgroup and of all its ancestors.

    A container may see the path that its cgroup has on the host, or one that begins above its own
    root, while its own cgroup is mounted as the root: folders that do not exist set no limit, and
    the mount itself always comes last.
    """
    group = PurePosixPath(*(part for part in path.split("/") if part != ".."))
    for ancestor in (group, *group.parents):
        yield mount / ancestor


def _bound(folder: Path, version: _Cgroups) -> Iterator[HostMemory]:
    """Yield what one cgroup leaves free, nothing if it has no limit."""
    limits = [_read_number(folder / name) for name in version.limits]
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is None:
        return
    usage = _read_number(folder / version.usage) or 0
    stat = _read_table(folder / "memory.stat")
    cached = sum(stat.get(row, 0) for row in version.caches)
    free_bytes = max(0, limit - max(0, usage - cached))
    yield HostMemory(free_bytes, limit, f"this container may use {_gib(limit)} GiB")


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None if there is no file, or no number but, say, "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _read_table(path: Path) -> dict[str, int]:
    """Return the first two columns of a file, empty if there is no file."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _gib(num_bytes: int) -> str:
    """Return GiB with one decimal, rounded down so that an advised size fits."""
    return f"{num_bytes * 10 // _GIB / 10:.1f}"
