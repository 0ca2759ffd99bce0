"""One rank of SGLang as the cache sees it: its options, its pages, its share of a block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexkv_connectors.below_host.rank import StorageRank, parse_options
from flexkv_connectors.sglang.engine_name import engine_name
from flexkv_connectors.sglang.host_pages import page_pool_of
from flexkv_connectors.sglang.page_memory import format_name, page_memory_of
from flexkv_connectors.sglang.settings import EngineSettings
from flexkv_core.block.cells import BLOCK_FORMAT, cell_heads_of, columns_of
from flexkv_core.block.layout import BlockFormat, Column, PagePool
from flexkv_core.config import CacheConfig
from flexkv_core.data.tiers.memory import PageMemory
from flexkv_core.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["HostPoolDeployment", "read_cache_config", "translate", "why_not"]

_SGLANG_OPTIONS = frozenset(
    {"allocator", "backend_name", "class_name", "interface_v1", "module_path"}
)
"""Keys of the extra config that are SGLang's own and stay in it."""

_HOST_TIER = "HiCache has the host memory; set --hicache-size"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPoolDeployment:
    """One rank's pages and place in the model."""

    rank: StorageRank
    pages: PagePool
    memory: PageMemory | None
    """The same pages, where blocks are stored as they are; None where blocks are cells."""

    block_format_name: str
    heads: range
    """KV heads of the whole model that this rank keeps; one for MLA."""

    layers: range
    """Layers of the whole model, draft layers behind them, that this rank keeps."""

    num_draft_layers: int
    total_heads: int
    cell_heads: int
    cell_layers: int
    key_head_size: int
    value_head_size: int
    dtype: str

    @property
    def block_format(self) -> BlockFormat:
        """This rank's share of a block, which is a page."""
        return BlockFormat(
            num_heads=self.pages.num_heads,
            num_layers=self.pages.num_layers,
            block_tokens=self.pages.page_tokens,
            token_bytes=self.pages.token_bytes,
            cell_heads=self.cell_heads,
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the cells of this rank's share of a block hold."""
        return columns_of(self.heads, self.layers, self.cell_heads)


def read_cache_config(extra_config: Mapping[str, Any] | None) -> CacheConfig:
    """Merge the options of the file, the environment and SGLang's extra config.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    extra = dict(extra_config or {})
    if not extra.get("interface_v1"):
        msg = (
            'interface_v1 is not set: add "interface_v1": 1 to '
            "--hicache-storage-backend-extra-config, without which SGLang does not say which pages "
            "come before others"
        )
        raise ConfigError(msg)
    options = {name: value for name, value in extra.items() if name not in _SGLANG_OPTIONS}
    return parse_options(options, _HOST_TIER)


def why_not(storage: "HiCacheStorageConfig", settings: EngineSettings) -> str | None:
    """Name what keeps this engine's pages from being stored, if anything does."""
    if storage.attn_cp_size > 1 or getattr(storage, "dcp_size", 1) > 1:
        return "context parallelism spreads one page over ranks"
    if _are_replicas_apart(storage, settings):
        return "ranks that keep the same KV are on several nodes, and only one of them would write"
    if settings.is_multimodal:
        return "SGLang names pictures by 30 bits of a hash, which does not identify them"
    return settings.needs_every_token or None


def translate(
    cache: CacheConfig,
    storage: "HiCacheStorageConfig",
    pool: "HostKVCache",
    settings: EngineSettings,
) -> HostPoolDeployment:
    """Describe a rank of an engine that `why_not` has nothing against.

    Raises:
        ConfigError: The options contradict the engine's.
        LayoutError: The host pool is of a kind that we do not know.
    """
    pages = page_pool_of(pool)
    if cache.block_tokens not in (None, pages.page_tokens):
        msg = (
            f"block_tokens is {cache.block_tokens}, but SGLang's page is {pages.page_tokens} "
            f"tokens, and a block is a page here: set --page-size {cache.block_tokens}, or leave "
            "block_tokens out"
        )
        raise ConfigError(msg)
    element_bytes = pool.dtype.itemsize
    head_size = pages.plane_bytes // element_bytes
    num_draft_layers = pages.num_layers - getattr(pool, "target_layer_num", pages.num_layers)
    num_replicas = _num_replicas(storage, settings)
    share = storage.tp_rank // num_replicas
    total_heads = pages.num_heads * (storage.tp_size // num_replicas)
    memory = _native_memory(cache, storage, pool)
    return HostPoolDeployment(
        rank=_rank_of(cache, storage, settings),
        pages=pages,
        memory=memory,
        block_format_name=format_name(pool, settings.version) if memory else BLOCK_FORMAT,
        heads=range(share * pages.num_heads, (share + 1) * pages.num_heads),
        layers=range(pool.start_layer, pool.start_layer + pages.num_layers),
        num_draft_layers=num_draft_layers,
        total_heads=total_heads,
        cell_heads=cell_heads_of(total_heads, storage.tp_size, cache.max_tp),
        cell_layers=-(-settings.num_layers // storage.pp_size),
        key_head_size=head_size,
        value_head_size=head_size if pages.num_planes > 1 else 0,
        dtype=str(pool.dtype),
    )


def _rank_of(
    cache: CacheConfig, storage: "HiCacheStorageConfig", settings: EngineSettings
) -> StorageRank:
    """Return what the stores of a rank go by; the ranks that write divide the room."""
    assert cache.ssd_cache_bytes is not None
    num_replicas = _num_replicas(storage, settings)
    num_writers = storage.tp_size // num_replicas * storage.pp_size
    return StorageRank(
        cache=cache,
        quota_bytes=cache.ssd_cache_bytes // num_writers,
        num_replicas=num_replicas,
        is_follower=storage.tp_rank % num_replicas > 0,
        engine_id=engine_name(settings.engine_index, getattr(storage, "dp_rank", 0)),
    )


def _num_replicas(storage: "HiCacheStorageConfig", settings: EngineSettings) -> int:
    """Return how many ranks in a row keep the same KV: all of MLA, or as SGLang spreads heads."""
    degree: int = storage.tp_size
    return degree if storage.is_mla_model else max(1, degree // settings.num_kv_heads)


def _are_replicas_apart(storage: "HiCacheStorageConfig", settings: EngineSettings) -> bool:
    """Tell whether ranks that keep the same KV are on several nodes."""
    nodes_per_stage: int = max(1, settings.num_nodes // storage.pp_size)
    ranks_per_node = settings.tp_size // nodes_per_stage
    return nodes_per_stage > 1 and ranks_per_node % _num_replicas(storage, settings) != 0


def _native_memory(
    cache: CacheConfig, storage: "HiCacheStorageConfig", pool: "HostKVCache"
) -> PageMemory | None:
    """Return the pages as they are to be stored, or None where blocks are cells."""
    if cache.block_format != "native":
        return None
    if cache.max_tp not in (None, storage.tp_size):
        msg = (
            f"max_tp is {cache.max_tp}, but blocks of block_format native are read at one degree "
            f"only, and this engine's is {storage.tp_size}: leave one of the two out"
        )
        raise ConfigError(msg)
    return page_memory_of(pool)
