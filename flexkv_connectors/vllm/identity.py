"""What a session stores of vLLM's KV: the origin of its blocks, with the layout of their cells."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_connectors.vllm.model_identity import describe_model, origin_with, why_unknown
from flexkv_connectors.vllm.support import window_of
from flexkv_core.block.cells import BLOCK_FORMAT_VERSION
from flexkv_core.block.namespace import Namespace, canonical_dtype
from flexkv_core.identity.origin import Origin

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig

__all__ = ["namespace_of", "origin_of", "why_no_ssd"]

_WHOLE_WINDOWS = "windows-kept-whole"
"""Names blocks of a model with windows: other engines keep only what its windows see."""


def why_no_ssd(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", deployment: VllmDeployment
) -> str | None:
    """Name what keeps blocks from being recognised after a restart, if anything does.

    Only for deployments that can be cached (`deployment.why_not` returned None).

    Returns:
        One clause for a person, with what to do about it if anything can be done.
    """
    return _why_not_layout(kv_cache_config) or why_unknown(vllm_config, deployment.cache)


def origin_of(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", deployment: VllmDeployment
) -> Origin:
    """Describe the blocks of an engine that can have an SSD tier (`why_no_ssd` returned None).

    Every rank comes to the same answer.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    return origin_with(
        vllm_config,
        deployment.cache,
        lambda found: namespace_of(vllm_config, kv_cache_config, deployment, found),
    )


def namespace_of(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    deployment: VllmDeployment,
    identities: Mapping[str, str],
) -> Namespace:
    """Return the namespace of blocks whose `Origin.sources` have `identities`.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """
    (group,) = kv_cache_config.kv_cache_groups
    spec: AttentionSpec = group.kv_cache_spec
    dtype = _kv_dtype(spec, vllm_config.cache_config.cache_dtype)
    model = describe_model(vllm_config, deployment.cache, dtype, identities)
    return msgspec.structs.replace(
        model,
        num_kv_heads=deployment.total_heads,
        key_head_size=spec.head_size,
        value_head_size=spec.head_size_v,
        block_tokens=deployment.block_tokens,
        block_format=deployment.block_format_name,
        block_format_version=BLOCK_FORMAT_VERSION,
        cell_heads=deployment.cell_heads,
        cell_layers=-(-model.num_layers // vllm_config.parallel_config.pipeline_parallel_size),
        cache_group=_WHOLE_WINDOWS if window_of(kv_cache_config) else "",
    )


def _why_not_layout(kv_cache_config: "KVCacheConfig") -> str | None:
    """Name a content that is not simply the K and the V of a token and head."""
    (group,) = kv_cache_config.kv_cache_groups
    spec: AttentionSpec = group.kv_cache_spec
    dense_bytes = (spec.head_size + spec.head_size_v) * spec.dtype.itemsize
    if (spec.num_heads, spec.state_content_size_bytes) == (spec.num_kv_heads, dense_bytes):
        return None
    return "its quantised KV is packed in an order that only this vLLM knows"


def _kv_dtype(spec: "AttentionSpec", option: str) -> str:
    """Return the type of an element; where vLLM stores plain bytes, its option has it."""
    stored = str(spec.dtype)
    return canonical_dtype(option if stored == "torch.uint8" else stored)
