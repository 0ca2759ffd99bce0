"""Pools that SGLang keeps beside its KV (a sliding window, a state, an indexer): what is stored.

A page of such a pool is stored as it is in memory, by the key of the page of KV that it belongs to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import torch

from flexkv_connectors.sglang.calls import keys_of, page_ids_of
from flexkv_connectors.sglang.deployment import Deployment
from flexkv_connectors.sglang.page_memory import format_name, page_memory_of
from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.block_store.page_store import PageAccess, PageFollower, PageStore
from flexkv_core.data.tiers.base import Tier
from flexkv_core.data.tiers.memory import PageMemory
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.format import slot_bytes
from flexkv_core.data.tiers.ssd.from_config import open_ssd_tier, ssd_options
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.tier_lane import TierLane

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolTransfer
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["Sidecar", "SidecarPool", "describe", "open_sidecar", "why_not_sidecar"]

_FORMAT_VERSION = 1
_OF_LATENTS = frozenset({"DSAIndexerPoolHost", "MLATokenToKVPoolHost"})
"""Pools that are the same on all ranks where the KV is latents."""

_OF_EACH_RANK = frozenset({"mamba"})
"""Pools that SGLang lets every rank store, whatever the KV is."""

_DTYPES = ("dtype", "temporal_dtype")
"""Where host pools say what their elements are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarPool:
    """One rank's pages of one pool, and what they are pages of."""

    name: str
    """SGLang's, such as "swa"."""

    memory: PageMemory
    page_tokens: int
    namespace: Namespace
    column: Column
    """This rank's share: of no heads or layers, but of ranks, as if each were one head."""

    is_replicated: bool
    """All ranks have the same pages, and the first stores them."""

    @property
    def stored_bytes(self) -> int:
        """What all pages would take on SSD."""
        return self.memory.num_slots * slot_bytes(self.memory.slot_bytes)


def why_not_sidecar(storage: "HiCacheStorageConfig", name: str, pool: "HostKVCache") -> str | None:
    """Name what keeps a pool beside the KV from being stored, if anything does."""
    if storage.pp_size > 1:
        return f"and its layers are spread over {storage.pp_size} pipeline stages"
    is_everybodys = _is_replicated(storage, pool) or name in _OF_EACH_RANK
    if storage.is_mla_model and storage.tp_size > 1 and not is_everybodys:
        return f"and only the first of its {storage.tp_size} ranks would write it"
    if torch.version.hip is not None:
        return "and on ROCm other packages decide how it lies in memory"
    return None


def describe(
    name: str,
    pool: "HostKVCache",
    storage: "HiCacheStorageConfig",
    version: str,
    kv_namespace: Namespace,
) -> SidecarPool:
    """Describe a pool beside the KV of `kv_namespace`, of which each rank keeps a share of its own.

    Where the pages are the same on all ranks, they are the only share.

    Raises:
        LayoutError: The pool is of a kind that we do not know, or its pages are not all alike.
    """
    memory = page_memory_of(pool)
    is_replicated = _is_replicated(storage, pool)
    share, num_shares = (0, 1) if is_replicated else (storage.tp_rank, storage.tp_size)
    dtypes = [str(getattr(pool, dtype)) for dtype in _DTYPES if hasattr(pool, dtype)]
    block_format = f"{format_name(pool, version)}.{'+'.join(dtypes)}.{num_shares}-shares"
    namespace = msgspec.structs.replace(
        kv_namespace,
        cache_group=name,
        block_format=block_format,
        block_format_version=_FORMAT_VERSION,
        cell_heads=1,
        cell_layers=1,
    )
    return SidecarPool(
        name=name,
        memory=memory,
        page_tokens=pool.page_size,
        namespace=namespace,
        column=Column(first_head=share, num_heads=1, first_layer=0, num_layers=1),
        is_replicated=is_replicated,
    )


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A pool beside the KV, as SGLang's calls ask for it.

    Thread: any; see `PageAccess`.
    """

    store: PageAccess
    page_tokens: int

    def find(self, hashes: Sequence[str]) -> list[bool]:
        """Tell for each key whether its page is stored."""
        return self.store.find(keys_of(hashes))

    def load(self, transfer: "PoolTransfer") -> list[bool]:
        """Fill the pages of a transfer, and tell for each whether it was."""
        return self._move(self.store.load, transfer)

    def save(self, transfer: "PoolTransfer") -> list[bool]:
        """Store the pages of a transfer, and tell for each whether it is stored now."""
        return self._move(self.store.save, transfer)

    def _move(
        self,
        move: Callable[[Sequence[BlockKey], Sequence[int]], list[bool]],
        transfer: "PoolTransfer",
    ) -> list[bool]:
        hashes = transfer.keys or []
        page_ids = page_ids_of(transfer.host_indices, self.page_tokens, len(hashes))
        return [False] * len(hashes) if page_ids is None else move(keys_of(hashes), page_ids)


def open_sidecar(deployment: Deployment, pool: SidecarPool, quota_bytes: int) -> Sidecar:
    """Open the store of a pool.

    Raises:
        ConfigError: None of the directories can be used.
    """
    has_followers = pool.is_replicated and deployment.has_followers
    options = ssd_options(deployment.cache, quota_bytes, has_followers=has_followers)
    blocks = (pool.namespace, [pool.column], pool.memory.slot_bytes)
    load_limit_s = deployment.cache.promotion_timeout_s
    if pool.is_replicated and deployment.is_follower:
        follower = Follower(pool.memory, *blocks, options, deployment.engine_id)
        lane = _lane(follower, pool)
        return Sidecar(PageFollower(follower, lane, load_limit_s=load_limit_s), pool.page_tokens)
    tier = open_ssd_tier(options, *blocks, pool.memory, deployment.engine_id)
    store = PageStore(
        tier,
        _lane(tier, pool),
        _lane(tier, pool),
        eviction_policy=deployment.cache.eviction_policy,
        load_limit_s=load_limit_s,
    )
    return Sidecar(store, pool.page_tokens)


def _lane(tier: Tier, pool: SidecarPool) -> DirectLane:
    return DirectLane(0, TierLane(0, tier, pool.memory))


def _is_replicated(storage: "HiCacheStorageConfig", pool: "HostKVCache") -> bool:
    return bool(storage.is_mla_model) and type(pool).__name__ in _OF_LATENTS
