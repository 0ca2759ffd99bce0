"""vLLM's host rows as what is stored: each is one piece of memory, and stands alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import vllm

from flexkv_connectors.below_host.pool import CellPages, StoredPool
from flexkv_connectors.vllm.model_identity import describe_model, origin_with
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine
from flexkv_core.block.layout import BlockFormat, Column, LayerRun, PagePool
from flexkv_core.block.namespace import Namespace, canonical_dtype, settings_digest
from flexkv_core.block_store.blocks import Access
from flexkv_core.identity.origin import Origin

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec
    from vllm.v1.kv_offload.config import OffloadingConfig

__all__ = ["ROWS", "Rows", "describe_rows", "origin_of_rows"]

_FORMAT_VERSION = 1
_COLUMN = Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)
ROWS = "offload"
"""What the only pool of an engine is called."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where vLLM's rows lie. Owns nothing, so that vLLM can release its region."""

    address: int
    num_rows: int
    row_bytes: int

    @classmethod
    def of(cls, view: memoryview) -> "Rows":
        """Describe vLLM's view, `[num_rows, row_bytes]` of bytes."""
        assert view.shape is not None
        num_rows, row_bytes = view.shape
        return cls(np.asarray(view).ctypes.data, num_rows, row_bytes)


def origin_of_rows(engine: OffloadingEngine, offloading: "OffloadingConfig", rows: Rows) -> Origin:
    """Describe the origin of an engine's rows.

    Raises:
        ConfigError: A setting has no form that could be compared.
    """

    def describe(identities: Mapping[str, str]) -> Namespace:
        dtype = canonical_dtype(offloading.model.dtype)
        model = describe_model(engine.vllm_config, engine.cache, dtype, identities)
        layout = _layout(engine, offloading)
        return msgspec.structs.replace(
            model,
            overrides=settings_digest({"model": model.overrides, "layout": layout}),
            num_kv_heads=1,
            key_head_size=rows.row_bytes,
            block_tokens=offloading.groups[0].tokens_per_block * offloading.cache.blocks_per_chunk,
            block_format=f"vllm-{vllm.__version__}.offload-row",
            block_format_version=_FORMAT_VERSION,
            cell_heads=1,
            cell_layers=1,
            cache_group=ROWS,
        )

    return origin_with(engine.vllm_config, engine.cache, describe)


def describe_rows(rows: Rows, namespace: Namespace) -> StoredPool:
    """Describe rows as pages of one piece each."""
    pages = PagePool(
        runs=(LayerRun(rows.address, 1, 0),),
        num_pages=rows.num_rows,
        num_heads=1,
        page_tokens=1,
        num_planes=1,
        plane_bytes=rows.row_bytes,
        page_stride=rows.row_bytes,
        head_stride=0,
        token_stride=0,
        plane_stride=0,
        memory_start=rows.address,
        memory_bytes=rows.num_rows * rows.row_bytes,
    )
    row = BlockFormat(
        num_heads=1, num_layers=1, block_tokens=1, token_bytes=rows.row_bytes, cell_heads=1
    )
    return StoredPool(
        name=ROWS,
        namespace=namespace,
        columns=(_COLUMN,),
        cell_bytes=rows.row_bytes,
        num_pages=rows.num_rows,
        access=Access.SINGLE,
        content=CellPages(pages, row),
        is_replicated=True,
    )


def _layout(engine: OffloadingEngine, offloading: "OffloadingConfig") -> dict[str, object]:
    """Return what decides where in a row which byte of KV lies, and which key names it."""
    parallel = offloading.parallel
    is_canonical = offloading.canonical_layout and parallel.is_parallelism_agnostic
    # A canonical row is the same at every degree, so nothing that differs between them is said.
    shares = [] if is_canonical else _describe_shares(offloading)
    return {
        "groups": [
            _describe_group(group, of_a_rank=not is_canonical)
            for group in engine.kv_cache_config.kv_cache_groups
        ],
        "shares": shares,
        "blocks_per_chunk": offloading.cache.blocks_per_chunk,
        "order": getattr(offloading, "kv_cache_layout", None),
        "tokens_per_hash": offloading.cache.tokens_per_hash,
        "hash": engine.vllm_config.cache_config.prefix_caching_hash_algo,
        "device": engine.vllm_config.device_config.device_type,
    }


def _describe_shares(offloading: "OffloadingConfig") -> list[object]:
    """Return how a row is divided among the ranks."""
    parallel = offloading.parallel
    degrees = parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size
    return [
        *degrees,
        parallel.world_size,
        offloading.worker_kv_bytes_per_block,
        offloading.replicated_layout,
        offloading.canonical_layout,
    ]


def _describe_group(group: "KVCacheGroupSpec", *, of_a_rank: bool) -> list[object]:
    """Return what a cache group keeps; with `of_a_rank`, how much of it each rank has, too."""
    spec = group.kv_cache_spec
    share = [spec.page_size_bytes, str(getattr(spec, "shapes", ""))] if of_a_rank else []
    return [
        type(spec).__name__,
        spec.block_size,
        str(getattr(spec, "dtype", "")),
        str(getattr(spec, "dtypes", "")),
        str(getattr(spec, "sliding_window", "")),
        list(group.layer_names),
        *share,
    ]
