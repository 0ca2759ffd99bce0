"""The host memory that vLLM's offloading shares among its processes: how much, and whose."""

import os
from pathlib import Path

from flexkv_core.data.host_memory import host_memory, limit_bytes

__all__ = ["default_region_bytes", "forget_name", "is_there", "why_no_room"]

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 that is where vLLM makes it
_MIB, _GIB = 2**20, 2**30
_MAX_DEFAULT_BYTES = 256 * _GIB


def default_region_bytes(num_engines: int, folder: Path = _SHARED_MEMORY) -> int:
    """Return the size of a region for which the user set none.

    It is half of what shared memory may take at all, divided among the engines of the node. What is
    free is not asked: every process of an engine has to come to the same answer, and the first
    ones fill the region while the last ones start.
    """
    status = os.statvfs(folder)
    total_bytes = min(status.f_blocks * status.f_frsize, limit_bytes())
    return min(total_bytes // 2, _MAX_DEFAULT_BYTES) // num_engines


def why_no_room(
    engine_id: str, num_bytes: int, row_bytes: int, folder: Path = _SHARED_MEMORY
) -> str | None:
    """Name what keeps an engine from having a region of `num_bytes`, if anything does.

    A region that exists was found to fit by the process that made it.
    """
    if num_bytes < row_bytes:  # vLLM would map nothing, and fail
        return (
            f"a block of this model takes {row_bytes / _MIB:.1f} MiB and vLLM's host tier has "
            f"{num_bytes / _MIB:.1f}: start the container with a larger --shm-size, or set "
            "cpu_cache_gb to more"
        )
    if is_there(engine_id, folder):
        return None
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    needs = f"vLLM's host tier needs {num_bytes / _GIB:.2f} GiB"
    if num_bytes > free_bytes:
        return (
            f"{needs} and {folder} has {free_bytes / _GIB:.2f} free: start the container with a "
            "larger --shm-size, or set cpu_cache_gb to less"
        )
    memory = host_memory()
    if num_bytes > memory.free_bytes:  # vLLM touches all of it: the kernel would end the engine
        return (
            f"{needs} and only {memory.free_bytes / _GIB:.2f} are free here ({memory.limit}): set "
            "cpu_cache_gb to less"
        )
    return None


def is_there(engine_id: str, folder: Path = _SHARED_MEMORY) -> bool:
    """Return whether a process of an engine has made its region."""
    return bool(_regions(engine_id, folder))


def forget_name(engine_id: str, folder: Path = _SHARED_MEMORY) -> None:
    """Unlink a region that all processes have mapped, so that it goes with the last of them."""
    for path in _regions(engine_id, folder):
        path.unlink(missing_ok=True)


def _regions(engine_id: str, folder: Path) -> list[Path]:
    prefix = f"vllm_offload_{engine_id}.mmap"
    return [path for path in folder.iterdir() if path.name.startswith(prefix)]
