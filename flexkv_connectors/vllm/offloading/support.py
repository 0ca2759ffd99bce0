"""Which engines vLLM's offloading can serve with FlexKV below it; all others go without caching.

Reasons are one clause for a person. Both roles ask before anything of vLLM's offloading is built,
and come to the same answer: no rank fails while others wait for it.
"""

from typing import TYPE_CHECKING, Any

import vllm

from flexkv_connectors.vllm.model_identity import why_unknown
from flexkv_connectors.vllm.offloading.drift import why_not_version
from flexkv_connectors.vllm.support import why_not_parallel, why_not_reuse, why_not_settings
from flexkv_core.config import CacheConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["why_no_ssd", "why_not"]

_KINDS = frozenset({"FullAttentionSpec", "MambaSpec", "SlidingWindowSpec"})
"""Caches that were restored on a real engine; vLLM runs MLA on CPUs with AMX only."""

_SLOTS_BY_RANK = (0, 32)
"""Before, a worker's place in a row was that of its device, which two of them may share."""


def why_not(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", *, moves_on_cpu: bool = False
) -> str | None:
    """Name what keeps this engine from being served, if anything does.

    Args:
        vllm_config: The engine's.
        kv_cache_config: The same.
        moves_on_cpu: Whether its offloading can move KV though it is in CPU memory: vLLM's cannot.
    """
    return (
        why_not_version()
        or _why_not_device(vllm_config, moves_on_cpu=moves_on_cpu)
        or why_not_reuse(vllm_config)
        or _why_not_groups(kv_cache_config)
        or why_not_parallel(vllm_config)
        or _why_not_ranks(vllm_config)
        or why_not_settings(vllm_config)
    )


def why_no_ssd(vllm_config: "VllmConfig", cache: CacheConfig) -> str | None:
    """Name what keeps rows from being recognised after a restart, if anything does."""
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    if "xxhash" in algorithm:
        return f"{algorithm} is no hash that two prompts cannot share: use sha256"
    return why_unknown(vllm_config, cache)


def _why_not_device(vllm_config: "VllmConfig", *, moves_on_cpu: bool) -> str | None:
    from vllm.platforms import current_platform  # noqa: PLC0415 vLLM is loaded by its own processes

    device = "rocm" if current_platform.is_rocm() else vllm_config.device_config.device_type
    if device == "cuda" or (device == "cpu" and moves_on_cpu):
        return None
    if device == "cpu":
        return 'vLLM offloads KV from GPUs only: "kv_connector": "flexkv-session" serves CPUs'
    return f"its KV is in {device} memory, which FlexKV below vLLM's offloading has never served"


def _why_not_groups(kv_cache_config: "KVCacheConfig") -> str | None:
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    unknown = sorted({type(spec).__name__ for spec in specs} - _KINDS)
    if unknown:
        return f"it keeps a cache of a kind that was never restored here ({', '.join(unknown)})"
    if not specs:
        return "it keeps no cache"
    return None


def _why_not_ranks(vllm_config: "VllmConfig") -> str | None:
    parallel: Any = vllm_config.parallel_config
    if parallel.nnodes_within_dp > 1:
        return f"it spans {parallel.nnodes_within_dp} nodes, and vLLM's host memory is one node's"
    if parallel.pipeline_parallel_size > 1:
        return "its pipeline stages may differ in size, and vLLM gives them rows of one size"
    if parallel.world_size == 1:
        return None
    if parallel.distributed_executor_backend != "mp":
        backend = parallel.distributed_executor_backend
        return f"its ranks are started by {backend}, where FlexKV below vLLM's offloading never ran"
    if vllm.__version_tuple__[:2] < _SLOTS_BY_RANK:
        return "before vLLM 0.32, several ranks may write to one place: upgrade vLLM"
    return None
