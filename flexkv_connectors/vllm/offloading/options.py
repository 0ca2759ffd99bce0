"""Our options as vLLM's offloading takes them."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flexkv_connectors.vllm.offloading.rows import EngineSettings
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["read_options", "translated"]

_OF_VLLM = frozenset({"spec_name", "spec_module_path"})
"""Options of vLLM's offloading that are passed on."""

_OF_A_SESSION = frozenset(
    {"copy_threads", "enable_gpu", "gpu_staging_mb", "load_async", "min_load_tokens"}
    | {"use_hugepage_cpu_buffer"}
)
_DEFAULT_CPU_GB = 1.0


def read_options(vllm_config: "VllmConfig") -> CacheConfig:
    """Merge the options of the file, the environment and vLLM's extra config.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    ours = {name: value for name, value in _extra(vllm_config).items() if name not in _OF_VLLM}
    for name in ours:
        if name in _OF_A_SESSION:
            msg = f"{name} means nothing here: vLLM itself moves KV between its device and the host"
            raise ConfigError(msg)
    return parse_config(read_environment(), ours)


def translated(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", cache: CacheConfig
) -> "VllmConfig":
    """Return a copy of vLLM's configuration whose extra config is that of its offloading."""
    ours: dict[str, Any] = {
        "spec_name": "TieringOffloadingSpec",
        "cpu_bytes_to_use": cache.cpu_cache_bytes or int(_DEFAULT_CPU_GB * 2**30),
        "offload_prompt_only": False,
        "secondary_tiers": [],
    }
    if cache.ssd_cache_bytes is not None:
        tier = {
            "type": "FlexKVTier",
            "module_path": "flexkv_connectors.vllm.offloading.tier",
            "engine": EngineSettings(vllm_config, kv_cache_config, cache),
        }
        ours["secondary_tiers"] = [tier]
    passed_on = {name: value for name, value in _extra(vllm_config).items() if name in _OF_VLLM}
    config = copy.copy(vllm_config)
    config.kv_transfer_config = copy.copy(vllm_config.kv_transfer_config)
    config.kv_transfer_config.kv_connector_extra_config = ours | passed_on
    return config


def _extra(vllm_config: "VllmConfig") -> Mapping[str, Any]:
    transfer = vllm_config.kv_transfer_config
    return transfer.kv_connector_extra_config if transfer else {}
