"""SGLang's host pools as what is stored: its KV, and what it keeps beside that.

A page of a pool beside the KV (a sliding window, a state, an indexer) is stored as it is in memory,
by the key of the page of KV that it belongs to.
"""

from typing import TYPE_CHECKING

import msgspec
import torch

from flexkv_connectors.below_host.pool import CellPages, StoredPool
from flexkv_connectors.sglang.deployment import HostPoolDeployment
from flexkv_connectors.sglang.page_memory import format_name, page_memory_of
from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.block_store.blocks import Access

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["KV", "describe_kv", "describe_sidecar", "why_not_sidecar"]

KV = "kv"
"""What SGLang calls the pool of full attention."""

_FORMAT_VERSION = 1
_OF_LATENTS = frozenset({"DSAIndexerPoolHost", "MLATokenToKVPoolHost"})
"""Pools that are the same on all ranks where the KV is latents."""

_OF_EACH_RANK = frozenset({"mamba"})
"""Pools that SGLang lets every rank store, whatever the KV is."""

_DTYPES = ("dtype", "temporal_dtype")
"""Where host pools say what their elements are."""


def describe_kv(deployment: HostPoolDeployment, namespace: Namespace) -> StoredPool:
    """Describe the KV of one rank, whose blocks are those of `namespace`."""
    block_format = deployment.block_format
    return StoredPool(
        name=KV,
        namespace=namespace,
        columns=deployment.columns,
        cell_bytes=block_format.cell_bytes,
        num_pages=deployment.pages.num_pages,
        access=Access.CHAIN,
        content=deployment.memory or CellPages(deployment.pages, block_format),
        is_replicated=True,
    )


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


def describe_sidecar(
    name: str,
    pool: "HostKVCache",
    storage: "HiCacheStorageConfig",
    version: str,
    kv_namespace: Namespace,
) -> StoredPool:
    """Describe a pool beside the KV of `kv_namespace`.

    Each rank keeps a share of its own, which is stored as if it were one head of one layer. Where
    the pages are the same on all ranks, they are the only share.

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
    return StoredPool(
        name=name,
        namespace=namespace,
        columns=(Column(first_head=share, num_heads=1, first_layer=0, num_layers=1),),
        cell_bytes=memory.slot_bytes,
        num_pages=memory.num_slots,
        access=Access.SINGLE,
        content=memory,
        is_replicated=is_replicated,
    )


def _is_replicated(storage: "HiCacheStorageConfig", pool: "HostKVCache") -> bool:
    return bool(storage.is_mla_model) and type(pool).__name__ in _OF_LATENTS
