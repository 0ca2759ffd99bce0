"""Configurations of engines that are never started, and what we read from them.

Run as a script with the folder of a model, it prints the digest of that model's namespace.
"""

import copy
import dataclasses
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from environment import restored_environment
from fakes import media_config
from vllm import EngineArgs
from vllm.config import KVTransferConfig, VllmConfig
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from flexkv_connectors.vllm.deployment import VllmDeployment, translate
from flexkv_connectors.vllm.identity import origin_of, why_no_ssd
from flexkv_core.block.namespace import Namespace
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.identity import origin
from flexkv_core.identity.origin import Origin

PAGE_TOKENS = 32
NUM_PAGES = 8


def engine_config(model: Path, **options: Any) -> VllmConfig:
    """Return what vLLM makes of its arguments."""
    arguments = {"max_model_len": 512, "block_size": PAGE_TOKENS} | options
    transfer = KVTransferConfig(kv_connector="flexkv", kv_role="kv_both")
    with restored_environment():
        return EngineArgs(
            model=str(model), kv_transfer_config=transfer, **arguments
        ).create_engine_config()


def changed(config: VllmConfig, part: str, **values: Any) -> VllmConfig:
    """Return `config` with other values in one of its parts: a state that has no option here."""
    other, other_part = copy.copy(config), copy.copy(getattr(config, part))
    for name, value in values.items():
        setattr(other_part, name, value)
    setattr(other, part, other_part)
    return other


def with_media(config: VllmConfig, **settings: Any) -> VllmConfig:
    """Return `config` as that of a model that reads media, too."""
    return changed(config, "model_config", multimodal_config=media_config(**settings))


def at_rank(config: VllmConfig, rank: int, degree: int, num_stages: int = 1) -> VllmConfig:
    """Return `config` as rank `rank` of a larger engine has it."""
    return changed(
        config,
        "parallel_config",
        rank=rank,
        tensor_parallel_size=degree,
        pipeline_parallel_size=num_stages,
    )


def declared_cache(config: VllmConfig, num_draft_layers: int = 0) -> KVCacheConfig:
    """Return what a worker declares of a model all of whose layers see everything."""
    model, parallel = config.model_config, config.parallel_config
    kind = MLAAttentionSpec if model.use_mla else FullAttentionSpec
    spec = kind(
        block_size=config.cache_config.block_size,
        num_kv_heads=model.get_num_kv_heads(parallel),
        head_size=model.get_head_size(),
        dtype=kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, model),
    )
    start, end = model.get_layers_start_end_indices(parallel)
    return cache_of(spec, end + num_draft_layers, start)


def cache_of(spec: AttentionSpec, end: int, start: int = 0) -> KVCacheConfig:
    """Return a cache of one group with the layers from `start` to `end`."""
    names = [f"model.layers.{layer}.self_attn.attn" for layer in range(start, end)]
    # What a KVCacheTensor is made of differs between versions, and its size does not.
    memory = SimpleNamespace(size=NUM_PAGES * len(names) * spec.page_size_bytes, block_stride=0)
    return KVCacheConfig(
        num_blocks=NUM_PAGES,
        kv_cache_tensors=[memory],
        kv_cache_groups=[KVCacheGroupSpec(names, spec)],
    )


def whole_windows(config: VllmConfig) -> KVCacheConfig:
    """Return what a worker declares where layers with windows keep all tokens, too."""
    (group,) = declared_cache(config).kv_cache_groups
    spec = dataclasses.replace(group.kv_cache_spec, sliding_window=8)
    return cache_of(spec, len(group.layer_names))


def window_group(config: VllmConfig) -> KVCacheGroupSpec:
    """Return a group of layers that keep what their windows see."""
    (group,) = declared_cache(config).kv_cache_groups
    spec = group.kv_cache_spec
    window = SlidingWindowSpec(
        block_size=spec.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_size=spec.head_size,
        dtype=spec.dtype,
        sliding_window=8,
    )
    return KVCacheGroupSpec(group.layer_names, window)


def deployment_of(config: VllmConfig, num_draft_layers: int = 0, **options: Any) -> VllmDeployment:
    """Return the deployment with our `options`."""
    return translate(config, declared_cache(config, num_draft_layers), parse_config(options))


def origin_of_blocks(config: VllmConfig, **options: Any) -> Origin:
    """Return what decides the bytes of blocks with our `options`."""
    return origin_of(config, declared_cache(config), deployment_of(config, **options))


def identify(config: VllmConfig, **options: Any) -> Namespace | None:
    """Return the namespace with our `options`; None if files do not say of what."""
    return find(origin_of_blocks(config, **options), parse_config(options))


def identify_cache(config: VllmConfig, cache: KVCacheConfig) -> Namespace | None:
    """Return the namespace of a cache of another kind."""
    options = parse_config({})
    return find(origin_of(config, cache, translate(config, cache, options)), options)


def find(found: Origin, cache: CacheConfig) -> Namespace | None:
    """Return the namespace of an engine that starts now."""
    namespaces: list[Namespace] = []
    now_s = time.time() + found.unseen_s
    with mock.patch.object(origin, "engine_start_s", return_value=now_s):
        found.find(cache, namespaces.append).join()
    return namespaces[0] if namespaces else None


def reason_of(config: VllmConfig, **options: Any) -> str | None:
    """Return why there would be no SSD tier with our `options`."""
    return why_no_ssd(config, declared_cache(config), deployment_of(config, **options))


if __name__ == "__main__":
    print(identify(engine_config(Path(sys.argv[1]))).digest.hex())
