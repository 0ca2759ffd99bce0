"""Which engines vLLM's offloading can serve with FlexKV below it; all others go without caching.

Reasons are one clause for a person. Both roles ask before anything of vLLM's offloading is built,
and come to the same answer: no rank fails while others wait for it.
"""

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import vllm

from flexkv_connectors.vllm.model_identity import why_unknown
from flexkv_connectors.vllm.offloading.drift import why_rows_end
from flexkv_connectors.vllm.support import why_not_parallel, why_not_reuse, why_not_settings
from flexkv_core.config import CacheConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = [
    "interval_to_share",
    "specs_of_layers",
    "tried_kinds",
    "why_no_ssd",
    "why_not",
    "why_untried",
]

_WHOLE = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
"""Caches that keep all tokens."""

_WINDOWED = frozenset({"FullAttentionSpec", "SlidingWindowSpec"})
_HYBRID = _WINDOWED | {"MambaSpec"}
_TRIED = {
    (0, 28): _HYBRID,
    (0, 29): _WINDOWED,
    (0, 30): _WINDOWED,
    (0, 31): _WINDOWED,
    (0, 32): _HYBRID,
}
"""Caches that were restored below vLLM's offloading, on real engines, by version."""

_KINDS = _HYBRID | _WHOLE
"""Caches that vLLM's offloading moves alike, whether they were tried or not."""

_INTERVAL_TOKENS = 256

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
        _why_not_device(vllm_config, moves_on_cpu=moves_on_cpu)
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
    return why_rows_end() or why_unknown(vllm_config, cache)


def interval_to_share(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> int | None:
    """Return an interval of tokens at which vLLM should keep windows and states, if it does not.

    It keeps them where a prompt ended, unless it is told an interval: a second prompt that begins
    like the first one finds no place to go on from.
    """
    interval = getattr(vllm_config.cache_config, "prefix_cache_retention_interval", None)
    if interval != 0 or _kinds_of(kv_cache_config) <= _WHOLE:
        return None
    pages = {group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups}
    step = math.lcm(*pages)
    return -(-_INTERVAL_TOKENS // step) * step


def tried_kinds() -> frozenset[str]:
    """Return the caches that were restored below the offloading of this vLLM."""
    return _TRIED.get(vllm.__version_tuple__[:2], frozenset())


def why_untried(kv_cache_config: "KVCacheConfig") -> str | None:
    """Name the caches of an engine that were not, if there are any."""
    untried = ", ".join(sorted(_kinds_of(kv_cache_config) - tried_kinds()))
    if not untried:
        return None
    return (
        f"FlexKV was never tried below this vLLM's offloading of {untried}: "
        '"kv_connector": "flexkv-offload" tries it'
    )


def _why_not_device(vllm_config: "VllmConfig", *, moves_on_cpu: bool) -> str | None:
    from vllm.platforms import current_platform  # noqa: PLC0415 vLLM is loaded by its own processes

    device = "rocm" if current_platform.is_rocm() else vllm_config.device_config.device_type
    if device == "cuda" or (device == "cpu" and moves_on_cpu):
        return None
    if device == "cpu":
        return 'vLLM offloads KV from GPUs only: "kv_connector": "flexkv-session" serves CPUs'
    return f"its KV is in {device} memory, which FlexKV below vLLM's offloading has never served"


def _why_not_groups(kv_cache_config: "KVCacheConfig") -> str | None:
    kinds = _kinds_of(kv_cache_config)
    if not kinds:
        return "it keeps no cache"
    if unknown := ", ".join(sorted(kinds - _KINDS)):
        return f"it keeps a cache of a kind that was never restored here ({unknown})"
    return None


def _kinds_of(kv_cache_config: "KVCacheConfig") -> set[str]:
    groups = kv_cache_config.kv_cache_groups
    specs = chain.from_iterable(specs_of_layers(group.kv_cache_spec) for group in groups)
    return {type(spec).__name__ for spec in specs}


def specs_of_layers(spec: Any) -> list[Any]:  # noqa: ANN401 vLLM's KVCacheSpec, any subclass
    """Return what the layers of a group keep; the scheduler is told of one for all."""
    by_layer = getattr(spec, "kv_cache_specs", None)
    return [spec] if by_layer is None else [*by_layer.values()]


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
