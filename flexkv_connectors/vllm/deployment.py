"""vLLM's configuration as the cache sees it: the only place that reads `VllmConfig`.

Both halves translate the same objects and must come to the same answer; what only a worker can
know (how much memory it got) travels in its first report instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexkv_connectors.common.cells import BLOCK_FORMAT, cell_heads_of, columns_of
from flexkv_connectors.vllm.cpu_pages import PLAIN, VEC, page_order
from flexkv_connectors.vllm.kv_caches import PageShape
from flexkv_connectors.vllm.support import why_not_device, why_not_group, why_not_parallel
from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError
from flexkv_core.layout import BlockFormat, Column

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig

__all__ = ["Deployment", "read_cache_config", "translate", "why_not"]

_DEFAULT_BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One engine's parallel shape, page geometry and cache options.

    Ranks count through pipeline stages and, inside a stage, through tensor-parallel ranks, as in
    vLLM. `num_replicas` consecutive ranks hold identical KV; the first of them owns the copy.
    """

    cache: CacheConfig
    rank: int
    num_ranks: int
    num_replicas: int
    num_engines: int
    """Engines of this server on this node that share `cpu_cache_gb` (data parallelism)."""

    num_nodes: int
    """Machines over which this engine's ranks are spread evenly."""

    page_shape: PageShape
    page_order: str
    """`cpu_pages.page_order`."""

    head_size: int
    element_bytes: int
    num_layers: int
    """Layers of this rank's stage, draft layers behind those of the model."""

    first_layer: int
    """Where its stage begins in the whole model."""

    total_heads: int
    """KV heads of the whole model; 1 for MLA."""

    cell_heads: int
    """KV heads in a cell: those of a rank at the largest degree that shares blocks."""

    block_tokens: int
    draft_blocks: int
    """Blocks at the end of a sequence that draft layers have not finished yet."""

    publishes_events: bool
    engine_id: str
    """The same on every rank of the engine, and its own."""

    @property
    def owners(self) -> range:
        """Ranks that own a host pool."""
        return range(0, self.num_ranks, self.num_replicas)

    @property
    def replicas(self) -> frozenset[int]:
        """Ranks that read the pool of another rank."""
        return frozenset(range(self.num_ranks)) - frozenset(self.owners)

    @property
    def owner(self) -> int:
        """The rank that owns this rank's host pool."""
        return self.rank - self.rank % self.num_replicas

    @property
    def num_local_owners(self) -> int:
        """Owners on this node."""
        return max(1, len(self.owners) // self.num_nodes)

    @property
    def is_owner(self) -> bool:
        """Whether this rank owns a host pool."""
        return self.rank == self.owner

    @property
    def page_tokens(self) -> int:
        """Tokens in one of vLLM's blocks, our pages."""
        return self.page_shape.page_tokens

    @property
    def pages_per_block(self) -> int:
        """Pages in one of our blocks."""
        return self.block_tokens // self.page_tokens

    @property
    def block_format_name(self) -> str:
        """What the order of bytes in a block is called: of no other engine if it is not known."""
        if self.page_order in (PLAIN, VEC):
            return BLOCK_FORMAT
        return f"vllm-{self.page_order}-{self.page_tokens}"

    @property
    def block_format(self) -> BlockFormat:
        """This rank's share of a block."""
        return BlockFormat(
            num_heads=self.page_shape.num_heads,
            num_layers=self.num_layers,
            block_tokens=self.block_tokens,
            token_bytes=self.page_shape.token_bytes,
            cell_heads=self.cell_heads,
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the cells of this rank's share of a block hold, in their order in a host slot."""
        num_heads = self.page_shape.num_heads
        num_shards = self.total_heads // num_heads
        shard = self.rank // self.num_replicas % num_shards
        return columns_of(
            range(shard * num_heads, (shard + 1) * num_heads),
            range(self.first_layer, self.first_layer + self.num_layers),
            self.cell_heads,
        )

    @property
    def ssd_quota_bytes(self) -> int | None:
        """This rank's part of `ssd_cache_gb`, if it owns a pool; None for no SSD tier."""
        total_bytes = self.cache.ssd_cache_bytes
        return None if total_bytes is None else total_bytes // len(self.owners)


def why_not(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", cache: CacheConfig
) -> str | None:
    """Name what keeps this deployment from being cached, if anything does."""
    reason = (
        why_not_device(vllm_config, enable_gpu=cache.enable_gpu)
        or why_not_group(kv_cache_config)
        or why_not_parallel(vllm_config)
    )
    if reason is None and getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        reason = "its KV scales are computed at run time"
    if reason is None and callable(vllm_config.model_config.hf_overrides):
        reason = "its model overrides are a function, which has no identity"
    return reason


def read_cache_config(vllm_config: "VllmConfig") -> CacheConfig:
    """Merge the options of the file, the environment and vLLM's extra config.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    transfer = vllm_config.kv_transfer_config
    extra: Mapping[str, Any] = transfer.kv_connector_extra_config if transfer else {}
    return parse_config(read_environment(), extra)


def translate(
    vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig", cache: CacheConfig
) -> Deployment:
    """Read the deployment from an engine that `why_not` has nothing against.

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
    return Deployment(
        cache=cache,
        rank=parallel.rank,
        num_ranks=degree * parallel.pipeline_parallel_size,
        num_replicas=replicas,
        num_engines=max(parallel.data_parallel_size_local, 1),
        num_nodes=parallel.nnodes_within_dp,
        page_shape=shape,
        page_order=page_order(vllm_config, spec),
        head_size=spec.head_size,
        element_bytes=spec.dtype.itemsize,
        num_layers=len(group.layer_names),
        first_layer=first_layer,
        total_heads=total_heads,
        cell_heads=cell_heads_of(total_heads, degree, cache.max_tp),
        block_tokens=_block_tokens(cache, spec.block_size),
        draft_blocks=int(_has_draft_layers(vllm_config)),
        publishes_events=_publishes_events(vllm_config),
        engine_id=str(vllm_config.kv_transfer_config.engine_id),
    )


def _num_replicas(vllm_config: "VllmConfig") -> int:
    """Return how many consecutive tensor-parallel ranks hold identical KV."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    num_heads = 1 if model.use_mla else int(model.get_total_num_kv_heads())
    return max(1, int(parallel.tensor_parallel_size) // num_heads)


def _block_tokens(cache: CacheConfig, page_tokens: int) -> int:
    """Return the block size: the one asked for, or the default in whole pages."""
    if cache.block_tokens is None:
        return max(1, _DEFAULT_BLOCK_TOKENS // page_tokens) * page_tokens
    if cache.block_tokens % page_tokens:
        msg = (
            f"block_tokens is {cache.block_tokens}, but vLLM's block is {page_tokens} tokens here: "
            f"set block_tokens to a multiple of {page_tokens}, or leave it out"
        )
        raise ConfigError(msg)
    return cache.block_tokens


def _has_draft_layers(vllm_config: "VllmConfig") -> bool:
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.draft_model_config is not None


def _publishes_events(vllm_config: "VllmConfig") -> bool:
    events = vllm_config.kv_events_config
    return events is not None and events.enable_kv_cache_events
