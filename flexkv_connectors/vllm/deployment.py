"""Translates vLLM's configuration for the cache.

Both halves translate the same objects and must come to the same answer; what only a worker can
know (how much memory it got) is in its first report instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexkv_connectors.session.deployment import (
    Deployment,
    PageShape,
    block_tokens_of,
    require_cells,
)
from flexkv_connectors.vllm.cpu_pages import PLAIN, VEC, page_order
from flexkv_connectors.vllm.support import (
    why_not_device,
    why_not_draft,
    why_not_group,
    why_not_parallel,
    why_not_reuse,
    why_not_settings,
)
from flexkv_core.block.cells import BLOCK_FORMAT, cell_heads_of
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import read_environment

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig

__all__ = [
    "VllmDeployment",
    "draft_of",
    "num_engines_on_node",
    "publishes_events",
    "read_cache_config",
    "translate",
    "why_not",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmDeployment(Deployment):
    """One vLLM engine: a deployment, and what only vLLM has options for."""

    page_order: str
    """`cpu_pages.page_order`."""

    head_size: int
    element_bytes: int
    draft_blocks: int
    """Blocks at the end of a sequence whose draft layers are computed in a later step."""

    publishes_events: bool

    @property
    def block_format_name(self) -> str:
        """Name of the order of bytes in a block; unknown orders are shared with no engine."""
        if self.page_order in (PLAIN, VEC):
            return BLOCK_FORMAT
        return f"vllm-{self.page_order}-{self.page_tokens}"


def why_not(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", cache: CacheConfig
) -> str | None:
    """Name what keeps this deployment from being cached, if anything does."""
    return (
        why_not_device(vllm_config, enable_gpu=cache.enable_gpu)
        or why_not_reuse(vllm_config)
        or _why_not_layers(vllm_config, kv_cache_config)
        or why_not_parallel(vllm_config)
        or why_not_settings(vllm_config)
    )


def _why_not_layers(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> str | None:
    """Name what is wrong with the layers, preferably with those of a draft model."""
    reason, draft = why_not_group(kv_cache_config), draft_of(vllm_config)
    if reason is None or draft is None:
        return reason
    return why_not_draft(vllm_config, draft) or reason


def draft_of(vllm_config: "VllmConfig") -> "ModelConfig | None":
    """Return the model whose layers keep KV beside the target's, if there is one.

    vLLM has a `draft_model_config` for methods without layers, too: then it is the target's, or
    that of heads without attention. A class of the user's may do anything, so it counts.
    """
    speculative = vllm_config.speculative_config
    if speculative is None:
        return None
    keeps_kv = (
        speculative.use_eagle()
        or speculative.uses_draft_model()
        or speculative.method == "custom_class"
    )
    return speculative.draft_model_config if keeps_kv else None


def read_cache_config(vllm_config: "VllmConfig") -> CacheConfig:
    """Merge the options of the file, the environment and vLLM's extra config.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    transfer = vllm_config.kv_transfer_config
    extra: Mapping[str, Any] = transfer.kv_connector_extra_config if transfer else {}
    return require_cells(parse_config(read_environment(), extra), "vLLM")


def translate(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", cache: CacheConfig
) -> VllmDeployment:
    """Read the deployment of an engine that can be cached (`why_not` returned None).

    Raises:
        ConfigError: The options contradict the engine's.
    """
    (group,) = kv_cache_config.kv_cache_groups
    spec: AttentionSpec = group.kv_cache_spec
    parallel = vllm_config.parallel_config
    shape = PageShape(spec.num_heads, spec.block_size, spec.state_content_size_bytes)
    replicas, degree = _num_replicas(vllm_config), parallel.tensor_parallel_size
    total_heads = spec.num_heads * degree // replicas
    first_layer, _ = vllm_config.model_config.get_layers_start_end_indices(parallel)
    return VllmDeployment(
        cache=cache,
        rank=parallel.rank,
        num_ranks=degree * parallel.pipeline_parallel_size,
        num_replicas=replicas,
        num_engines=num_engines_on_node(vllm_config),
        num_nodes=parallel.nnodes_within_dp,
        page_shape=shape,
        page_order=page_order(vllm_config, spec),
        head_size=spec.head_size,
        element_bytes=spec.dtype.itemsize,
        num_layers=len(group.layer_names),
        first_layer=first_layer,
        total_heads=total_heads,
        cell_heads=cell_heads_of(total_heads, degree, cache.max_tp),
        block_tokens=block_tokens_of(cache, spec.block_size, "vLLM"),
        step_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
        draft_blocks=int(draft_of(vllm_config) is not None),
        publishes_events=publishes_events(vllm_config),
        engine_id=str(vllm_config.kv_transfer_config.engine_id),
    )


def num_engines_on_node(vllm_config: "VllmConfig") -> int:
    """Return how many data-parallel engines share the memory and the drives of this node."""
    return max(int(vllm_config.parallel_config.data_parallel_size_local), 1)


def _num_replicas(vllm_config: "VllmConfig") -> int:
    """Return how many consecutive tensor-parallel ranks hold identical KV."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    num_heads = 1 if model.use_mla else int(model.get_total_num_kv_heads())
    return max(1, int(parallel.tensor_parallel_size) // num_heads)


def publishes_events(vllm_config: "VllmConfig") -> bool:
    """Return whether vLLM tells routers what its caches hold."""
    events = vllm_config.kv_events_config
    return events is not None and events.enable_kv_cache_events
