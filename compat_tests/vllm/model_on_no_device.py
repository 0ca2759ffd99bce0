"""What vLLM keeps of a model: its own class is built on no device, and its own groups are made.

A model needs no weights for it, no network, and at TP 8 no eight processes: this one is the first
rank, and takes the others' word. Experts keep no KV, so they are left out.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import vllm.distributed.parallel_state as groups
from pretended_gpu import StandIn, building
from torch import nn
from vllm import EngineArgs
from vllm.config import (
    KVTransferConfig,
    VllmConfig,
    get_layers_from_vllm_config,
    set_current_vllm_config,
)
from vllm.model_executor.layers import fused_moe
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models import registry
from vllm.platforms import current_platform
from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
from vllm.v1.core.kv_cache_utils import generate_scheduler_kv_cache_config, get_kv_cache_configs
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

__all__ = ["cache_configs", "configure", "prepare"]

_ROOM = 2**44
"""Bytes that the pretended device has for KV: enough for one prompt of any model's length."""


class _NoExperts(nn.Module):
    """In the place of experts."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return mock.MagicMock()


class _Group:
    """A process group of which only this process is there: the first."""

    def __init__(self, num_ranks: int) -> None:
        self.world_size, self.ranks = num_ranks, list(range(num_ranks))
        self.rank = self.rank_in_group = self.local_rank = self.first_rank = 0
        self.is_first_rank = self.is_last_rank = True
        self.device = torch.device("meta")
        self.cpu_group = self.device_group = mock.MagicMock()
        self.device_group.size.return_value = num_ranks
        self.device_group.rank.return_value = 0
        self.device_communicator = self.mq_broadcaster = None


def prepare() -> None:
    """Change this process: before a model's class is loaded, and the same on every CPU."""
    fused_moe.FusedMoEFactory = fused_moe.layer.FusedMoEFactory = _NoExperts
    registry._run_in_subprocess = lambda function: function()
    torch.cpu._is_amx_tile_supported = torch.cpu._is_avx512_bf16_supported = lambda: False
    sys.meta_path.insert(0, StandIn("torchvision"))


def configure(facts: dict[str, Any], degree: int = 1, **options: Any) -> VllmConfig:
    """Return what vLLM makes of a folder that holds nothing but `facts` as its config.json.

    Args:
        facts: The model's.
        degree: Of tensor parallelism.
        options: FlexKV's.
    """
    folder = Path(tempfile.mkdtemp())  # it is read again when the model is built
    (folder / "config.json").write_text(json.dumps(facts))
    return EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        tensor_parallel_size=degree,
        distributed_executor_backend="mp" if degree > 1 else None,
        kv_transfer_config=KVTransferConfig(
            kv_connector="flexkv", kv_role="kv_both", kv_connector_extra_config=options
        ),
    ).create_engine_config()


def cache_configs(config: VllmConfig) -> tuple[KVCacheConfig, KVCacheConfig]:
    """Return what the first worker and the scheduler are told that the engine keeps."""
    from vllm.model_executor.model_loader.utils import initialize_model

    with _as_first_rank(config):
        with torch.device("meta"):
            initialize_model(config)
        current_platform.update_block_size_for_backend(config)
        register_all_kvcache_specs(config)
        specs = get_kv_cache_spec(config)
        resolve_kv_cache_layout(config, [_layouts(config)], [*specs.values()])
        [worker] = get_kv_cache_configs(config, [specs], [_ROOM])
    return worker, generate_scheduler_kv_cache_config([worker])


def _layouts(config: VllmConfig) -> list[str]:
    layers = get_layers_from_vllm_config(config, AttentionLayerBase)
    backends = [layer.get_attn_backend() for layer in layers.values()]
    return [layout.name for layout in get_supported_kv_cache_layouts(backends)]


@contextmanager
def _as_first_rank(config: VllmConfig) -> Iterator[None]:
    """Be the first rank of an engine, in whose memory nothing is."""
    degree = config.parallel_config.tensor_parallel_size
    alone = dict.fromkeys(("_PP", "_DP", "_DCP", "_PCP"), _Group(1))
    shared = dict.fromkeys(("_TP", "_EP", "_WORLD"), _Group(degree))
    with ExitStack() as stack:
        for patch in (
            mock.patch.multiple(groups, **alone, **shared),
            mock.patch.object(config.device_config, "device", torch.device("meta")),
            mock.patch.multiple(torch.cuda, Event=mock.MagicMock, Stream=mock.MagicMock),
        ):
            stack.enter_context(patch)
        stack.enter_context(set_current_vllm_config(config))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(config.model_config.dtype)
        if current_platform.is_cuda():
            stack.enter_context(building())
        yield
