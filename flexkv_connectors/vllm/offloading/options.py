"""Our options as vLLM's offloading takes them."""

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config

from flexkv_connectors.event_publisher import require_no_events
from flexkv_connectors.vllm.deployment import num_engines_on_node
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine
from flexkv_connectors.vllm.offloading.region import default_region_bytes
from flexkv_connectors.vllm.offloading.support import specs_of_layers
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = [
    "read_options",
    "region_bytes",
    "replaces_spec",
    "row_bytes",
    "translated",
    "with_tier",
]

logger = logging.getLogger(__name__)

_PASSED_ON = frozenset({"spec_name", "spec_module_path"})
"""Options of vLLM's offloading, for who has a way of their own to move KV to host memory."""

_SPEC = "TieringOffloadingSpec"
_TIER = {"type": "FlexKVTier", "module_path": "flexkv_connectors.vllm.offloading.tier"}

_OF_A_SESSION = frozenset(
    {"copy_threads", "enable_gpu", "gpu_staging_mb", "load_async", "min_load_tokens"}
    | {"use_hugepage_cpu_buffer"}
)
"""Options about moving KV between the engine and host memory."""


def read_options(vllm_config: "VllmConfig") -> CacheConfig:
    """Merge the options of the file, the environment and vLLM's extra config.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    ours = {name: value for name, value in _extra(vllm_config).items() if name not in _PASSED_ON}
    for name, value in ours.items():
        if name in _OF_A_SESSION and value is not None and value != "":
            msg = f"{name} means nothing here: vLLM itself moves KV between its device and the host"
            raise ConfigError(msg)
    cache = parse_config(read_environment(), ours)
    if cache.block_format != "cells":
        raise ConfigError("block_format means nothing here: blocks are rows of vLLM's host memory")
    return require_no_events(cache, "set vLLM's --kv-events-config")


def replaces_spec(vllm_config: "VllmConfig") -> bool:
    """Return whether the user has named an offloading spec in the place of vLLM's."""
    return "spec_name" in _extra(vllm_config)


def region_bytes(engine: OffloadingEngine) -> int:
    """Return the size of an engine's host tier; the same in all of its processes."""
    if engine.cache.cpu_cache_bytes is not None:
        return engine.cache.cpu_cache_bytes
    return default_region_bytes(num_engines_on_node(engine.vllm_config))


def row_bytes(engine: OffloadingEngine) -> int:
    """Return what one block takes in an engine's host tier.

    Raises:
        ConfigError: The options contradict the engine's.
    """
    config = translated(engine, uses_ssd=False)
    offloading = build_offloading_config(config, engine.kv_cache_config)
    num_copies = 1 if offloading.replicated_layout else offloading.parallel.world_size
    page_bytes = offloading.worker_kv_bytes_per_block * num_copies
    return int(page_bytes * offloading.cache.blocks_per_chunk)


def translated(engine: OffloadingEngine, *, uses_ssd: bool, says_so: bool = False) -> "VllmConfig":
    """Return a copy of vLLM's configuration whose extra config is that of its offloading.

    Args:
        engine: Whose options are translated.
        uses_ssd: Whether our tier is below.
        says_so: Whether what cannot be had is logged.

    Raises:
        ConfigError: The options contradict the engine's.
    """
    config, cache = engine.vllm_config, engine.cache
    tier = {**_TIER, "engine": engine}
    extra: dict[str, Any] = {
        "spec_name": _SPEC,
        "cpu_bytes_to_use": region_bytes(engine),
        "blocks_per_chunk": _blocks_per_chunk(engine),
        "eviction_policy": "lru",
        "offload_prompt_only": False,
        "secondary_tiers": [tier] if uses_ssd else [],
    }
    extra |= {name: value for name, value in _extra(config).items() if name in _PASSED_ON}
    if cache.max_tp is not None and _is_canonical(engine, extra, says_so=says_so):
        extra["canonical_layout"] = True
    return _with_extra(config, extra)


def with_tier(vllm_config: "VllmConfig") -> "VllmConfig":
    """Return a copy of vLLM's configuration that names our tier, for who asks for its metrics."""
    return _with_extra(vllm_config, {"spec_name": _SPEC, "secondary_tiers": [{**_TIER}]})


def _blocks_per_chunk(engine: OffloadingEngine) -> int:
    """Return how many of the engine's pages are one block."""
    block_tokens = engine.cache.block_tokens
    if block_tokens is None:
        return 1
    pages = {
        int(group.kv_cache_spec.block_size) for group in engine.kv_cache_config.kv_cache_groups
    }
    if len(pages) == 1 and block_tokens % min(pages) == 0:
        return block_tokens // min(pages)
    sizes = " and ".join(map(str, sorted(pages)))
    msg = (
        f"block_tokens is {block_tokens}, but pages of this engine hold {sizes} tokens: leave it "
        "out" + (f", or set a multiple of {sizes}" if len(pages) == 1 else "")
    )
    raise ConfigError(msg)


def _is_canonical(engine: OffloadingEngine, extra: dict[str, Any], *, says_so: bool) -> bool:
    """Return whether rows can be the same at every tensor-parallel degree.

    Raises:
        ConfigError: A worker sees layers of several shapes, of which the scheduler sees one: they
            could come to different answers.
    """
    groups = engine.kv_cache_config.kv_cache_groups
    if any(len(specs_of_layers(group.kv_cache_spec)) > 1 for group in groups):
        raise ConfigError("layers of this engine keep KV of different shapes: leave max_tp out")
    config = _with_extra(engine.vllm_config, extra | {"canonical_layout": True})
    offloading = build_offloading_config(config, engine.kv_cache_config)
    is_canonical = bool(offloading.parallel.is_parallelism_agnostic)
    if says_so and not is_canonical:
        logger.warning(
            "max_tp is ignored: vLLM can lay out this model's KV for one parallel degree only, so "
            "blocks are found by engines of the same degree"
        )
    return is_canonical


def _with_extra(vllm_config: "VllmConfig", extra: dict[str, Any]) -> "VllmConfig":
    config = copy.copy(vllm_config)
    config.kv_transfer_config = copy.copy(vllm_config.kv_transfer_config)
    config.kv_transfer_config.kv_connector_extra_config = extra
    return config


def _extra(vllm_config: "VllmConfig") -> Mapping[str, Any]:
    transfer = vllm_config.kv_transfer_config
    return transfer.kv_connector_extra_config if transfer else {}
