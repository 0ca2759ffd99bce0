"""How an engine around a simulated model is configured."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from environment import restored_environment
from simulated_model import PAGE_TOKENS, Finalize
from vllm import EngineArgs
from vllm.config import KVEventsConfig, KVTransferConfig, VllmConfig
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MLAAttentionSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

LAYERS_PER_STAGE = 2


class Shape(NamedTuple):
    """One engine configuration."""

    async_scheduling: bool = False
    v2_runner: bool = False
    finalize: Finalize = "step"
    num_stages: int = 1
    tensor_parallel: int = 1
    mla: bool = False
    layout: str = "LBNHC"
    num_pages: int = 64
    max_batched_tokens: int = 24
    max_requests: int = 4
    recompute: bool = True
    load_async: bool = True
    page_tokens: int = PAGE_TOKENS
    block_tokens: int = 2 * PAGE_TOKENS
    cpu_cache_gb: float = 1e-4
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def num_ranks(self) -> int:
        return self.num_stages * self.tensor_parallel


def base_config(model: Path, connector: dict[str, Any]) -> VllmConfig:
    """Read a model's configuration once; `SimulatedEngine` adapts copies of it."""
    with restored_environment():
        return EngineArgs(
            model=str(model),
            dtype="float32",
            max_model_len=512,
            block_size=PAGE_TOKENS,
            enable_prefix_caching=True,
            kv_transfer_config=KVTransferConfig(kv_role="kv_both", **connector),
        ).create_engine_config()


def config_for(base: VllmConfig, shape: Shape, rank: int) -> VllmConfig:
    config = copy.copy(base)
    for name in ("scheduler_config", "parallel_config", "cache_config", "kv_transfer_config"):
        setattr(config, name, copy.copy(getattr(base, name)))
    config.scheduler_config.async_scheduling = shape.async_scheduling
    config.scheduler_config.max_num_batched_tokens = shape.max_batched_tokens
    config.scheduler_config.max_num_seqs = shape.max_requests
    config.scheduler_config.enable_chunked_prefill = True
    config.parallel_config.tensor_parallel_size = shape.tensor_parallel
    config.parallel_config.pipeline_parallel_size = shape.num_stages
    config.parallel_config.world_size = shape.num_ranks
    config.parallel_config.rank = rank
    config.cache_config.block_size = shape.page_tokens
    config.cache_config.enable_prefix_caching = True
    config.cache_config.num_gpu_blocks = shape.num_pages
    config.kv_events_config = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    transfer = config.kv_transfer_config
    transfer.kv_load_failure_policy = "recompute" if shape.recompute else "fail"
    transfer.kv_connector_extra_config = {
        "load_async": shape.load_async,
        "block_tokens": shape.block_tokens,
        "cpu_cache_gb": shape.cpu_cache_gb,
        **shape.options,
    }
    return config


def kv_cache_config(shape: Shape, stage: int) -> KVCacheConfig:
    kind = MLAAttentionSpec if shape.mla else FullAttentionSpec
    heads = 1 if shape.mla else 2
    spec = kind(block_size=shape.page_tokens, num_kv_heads=heads, head_size=2, dtype=torch.float32)
    first = stage * LAYERS_PER_STAGE
    names = [f"model.layers.{first + i}.self_attn.attn" for i in range(LAYERS_PER_STAGE)]
    page_bytes, layout = spec.page_size_bytes, KVCacheLayout[shape.layout]
    outermost = layout.is_block_outermost
    tensor = KVCacheTensor(
        size=page_bytes * shape.num_pages * LAYERS_PER_STAGE,
        layers=names,
        layer_stride=page_bytes if outermost else page_bytes * shape.num_pages,
        block_stride=page_bytes * LAYERS_PER_STAGE if outermost else page_bytes,
    )
    values = {
        "num_blocks": shape.num_pages,
        "kv_cache_tensors": [tensor],
        "kv_cache_groups": [KVCacheGroupSpec(names, spec)],
        "kv_cache_layout": shape.layout,
        "hash_block_size": shape.page_tokens,
        "kv_tp_replicas": shape.tensor_parallel if shape.mla else 1,
    }
    # Some versions have no fields for the last ones.
    known = {field.name for field in dataclasses.fields(KVCacheConfig)}
    return KVCacheConfig(**{name: value for name, value in values.items() if name in known})
