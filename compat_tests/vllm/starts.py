"""Ways in which engines are started, as data."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["STARTS", "Start"]


class Start(NamedTuple):
    """How an engine is started."""

    model: str = "Qwen3-8B"
    degree: int = 1
    changes: Mapping[str, dict[str, Any]] = MappingProxyType({})
    """Values of parts of vLLM's configuration that differ."""

    is_rocm: bool = False
    free_bytes: int | None = None
    """Of shared memory, if it is less than enough."""


_TWO = {"world_size": 2}

STARTS = {
    "one CPU": Start(changes={"device_config": {"device_type": "cpu"}}),
    "one NVIDIA GPU": Start(changes={"device_config": {"device_type": "cuda"}}),
    "TP 8": Start(degree=8),
    "TP 8, MLA": Start("DeepSeek-V3", 8),
    "TP 8, fewer KV heads": Start("Qwen3-235B-A22B", 8),
    "TP 2 by Ray": Start(
        changes={"parallel_config": _TWO | {"distributed_executor_backend": "ray"}}
    ),
    "PP 2": Start(changes={"parallel_config": _TWO | {"pipeline_parallel_size": 2}}),
    "DP 2": Start(changes={"parallel_config": {"data_parallel_size": 2}}),
    "DCP 2": Start(changes={"parallel_config": {"decode_context_parallel_size": 2}}),
    "two nodes": Start(changes={"parallel_config": {"nnodes": 2}}),
    "ROCm": Start(changes={"device_config": {"device_type": "cuda"}}, is_rocm=True),
    "XPU": Start(changes={"device_config": {"device_type": "xpu"}}),
    "`cpu_cache_gb` 16, 64 MiB of /dev/shm": Start(free_bytes=64 * 2**20),
}
