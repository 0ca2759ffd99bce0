"""From the engine's settings and the user's options to a deployment."""

import os

from flexkv_connectors.session.deployment import (
    Deployment,
    PageShape,
    block_tokens_of,
    require_cells,
)
from flexkv_connectors.tensorrt_llm.settings import EngineSettings
from flexkv_core.block.cells import cell_heads_of
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError

__all__ = ["read_cache_config", "translate"]


def read_cache_config() -> CacheConfig:
    """Merge the options of the file and the environment; the engine has no place for any.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    return require_cells(parse_config(read_environment()), "TensorRT-LLM")


def translate(settings: EngineSettings, cache: CacheConfig, rank: int) -> Deployment:
    """Describe one rank.

    Raises:
        ConfigError: The deployment cannot be served, or the options contradict it.
    """
    if settings.unsupported:
        msg = (
            f"FlexKV behind TensorRT-LLM does not serve {settings.unsupported} yet: change it, or "
            "leave kv_connector_config out"
        )
        raise ConfigError(msg)
    num_heads, degree = settings.num_kv_heads, settings.degree
    if max(num_heads, degree) % min(num_heads, degree):
        msg = f"{num_heads} KV heads cannot be spread evenly over {degree} ranks"
        raise ConfigError(msg)
    token_bytes = settings.num_planes * settings.head_size * settings.element_bytes
    return Deployment(
        cache=cache,
        rank=rank % degree,
        num_ranks=degree,
        num_replicas=max(1, degree // num_heads),
        num_engines=settings.num_engines,
        num_nodes=settings.num_nodes,
        page_shape=PageShape(max(1, num_heads // degree), settings.tokens_per_block, token_bytes),
        num_layers=settings.num_layers,
        first_layer=0,
        total_heads=num_heads,
        cell_heads=cell_heads_of(num_heads, degree, cache.max_tp),
        block_tokens=block_tokens_of(cache, settings.tokens_per_block, "TensorRT-LLM"),
        step_tokens=settings.step_tokens,
        engine_id=f"tensorrt_llm-{os.uname().nodename}-{os.getppid()}-{rank // degree}",
    )
