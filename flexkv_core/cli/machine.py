"""The machine that the engine will run on, and whether the host tier fits its memory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flexkv_core.cli.text import bytes_text
from flexkv_core.config import CacheConfig
from flexkv_core.data.host_memory import check_host_bytes, default_cache_bytes, host_memory
from flexkv_core.errors import ConfigError

__all__ = ["Machine", "find_machine", "machine_problems"]

_ROOT = Path("/")


class Machine(msgspec.Struct, kw_only=True):
    """What the machine offers."""

    cores: int
    usable_cores: int
    memory_free_bytes: int
    memory_limit: str
    """What bounds it, for people."""

    default_cache_bytes: int
    """Host tier of one engine that sets no size."""

    huge_pages_free_bytes: int
    memlock_bytes: int | None
    """Memory that a process may lock, None for no limit."""

    gpus: list[str]


def find_machine(root: Path = _ROOT) -> Machine:
    """Inspect this machine.

    Args:
        root: The root of the file system; another one in tests.
    """
    memory = host_memory(root)
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return Machine(
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)),
        memory_free_bytes=memory.free_bytes,
        memory_limit=memory.limit,
        default_cache_bytes=default_cache_bytes(1, root),
        huge_pages_free_bytes=_huge_pages_free_bytes(root),
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        gpus=sorted(_gpus(root)),
    )


def machine_problems(machine: Machine, config: CacheConfig, root: Path = _ROOT) -> Iterator[str]:
    """Yield why the host tier of `config` cannot be made here, and what to do."""
    if config.cpu_cache_bytes is not None:
        try:
            check_host_bytes(config.cpu_cache_bytes, root)
        except ConfigError as error:
            yield str(error)
    elif not machine.default_cache_bytes:
        free = bytes_text(machine.memory_free_bytes)
        yield (
            f"there is no memory for a host tier: {free} are free here ({machine.memory_limit}): "
            "free memory, or give the container more"
        )
    asked_bytes = config.cpu_cache_bytes or machine.default_cache_bytes
    if config.use_hugepage_cpu_buffer and machine.huge_pages_free_bytes < asked_bytes:
        yield (
            f"use_hugepage_cpu_buffer is set for {bytes_text(asked_bytes)}, but huge pages are "
            f"free for {bytes_text(machine.huge_pages_free_bytes)}: raise vm.nr_hugepages, or "
            "remove the option"
        )


def _huge_pages_free_bytes(root: Path) -> int:
    rows = [line.split() for line in (root / "proc/meminfo").read_text().splitlines()]
    numbers = {row[0]: int(row[1]) for row in rows}
    return numbers.get("HugePages_Free:", 0) * numbers.get("Hugepagesize:", 0) * 1024


def _gpus(root: Path) -> Iterator[str]:
    """Yield the names of NVIDIA GPUs, which their driver lists even without CUDA."""
    for folder in (root / "proc/driver/nvidia/gpus").glob("*"):
        for line in (folder / "information").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Model":
                yield value.strip()
