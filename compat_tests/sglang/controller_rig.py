"""SGLang's real HiCacheController over CPU pools, with a dynamic storage backend."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import KVCache, MHATokenToKVPool
from sglang.srt.mem_cache.pool_host import HostKVCache
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang.srt.runtime_context import get_context, get_parallel

from flexkv_connectors.sglang import weight_updates
from flexkv_connectors.sglang.storage import FlexKVHiCacheStorage
from flexkv_core.identity import origin

LAYERS, HEADS, SIZE, TOKENS = 5, 2, 64, 16
"""Of the model `oracle`, in pages of 16 tokens."""

WAIT_S = 60


class Geometry(NamedTuple):
    """Of a model's KV, in pages."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype
    page_tokens: int


OF_ORACLE = Geometry(LAYERS, HEADS, SIZE, torch.float32, TOKENS)


def place_of(rank: int, num_ranks: int) -> dict[str, int]:
    """Return a tensor-parallel rank's place as SGLang wants to know it."""
    return {
        "tp_rank": rank,
        "tp_size": num_ranks,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_tp_rank": rank,
        "attn_tp_size": num_ranks,
        "moe_tp_size": num_ranks,
        "attn_dp_rank": 0,
        "dp_rank": None,
        "attn_dcp_rank": 0,
        "attn_dcp_size": 1,
    }


def places_of(num_ranks: int) -> list[dict[str, int]]:
    """Return how a rig is told which of `num_ranks` ranks it is, for each of them."""
    return [{"rank": rank, "num_ranks": num_ranks} for rank in range(num_ranks)]


class ControllerRig:
    """A rank's controller, its host pool, and the two verbs of its threads, each waited for."""

    def __init__(
        self,
        model: Path,
        layout: str,
        storage: dict[str, Any],
        backend: str = "dynamic",
        num_pages: int = 64,
        rank: int = 0,
        num_ranks: int = 1,
        geometry: Geometry = OF_ORACLE,
    ) -> None:
        self._place, self._geometry = place_of(rank, num_ranks), geometry
        self._num_heads = max(1, geometry.heads // num_ranks)
        page_tokens = geometry.page_tokens
        weight_updates.register()
        context = get_context().override_server_args(
            model_path=str(model),
            device="cpu",
            dtype=str(geometry.dtype).removeprefix("torch."),
            page_size=page_tokens,
            hicache_mem_layout=layout,
            hicache_io_backend="direct",
        )
        context.install()
        device = self._make_device()
        allocator = PagedTokenToKVPoolAllocator(
            page_tokens * 4, page_tokens, geometry.dtype, "cpu", device, need_sort=False
        )
        self.device = device
        self.pool = self.make_pool(layout, num_pages)
        options = {name: value for name, value in storage.items() if name not in _POPPED}
        self.options, self._backend = options, backend
        with get_parallel().override(**self._place):
            self.controller = self._make_controller(allocator, page_tokens)
        self.attach()

    def _make_controller(
        self, allocator: PagedTokenToKVPoolAllocator, page_tokens: int
    ) -> HiCacheController:
        return HiCacheController(allocator, self.pool, page_tokens, None, None, io_backend="direct")

    def _make_device(self) -> KVCache:
        geometry = self._geometry
        return MHATokenToKVPool(
            size=geometry.page_tokens * 4,
            page_size=geometry.page_tokens,
            dtype=geometry.dtype,
            head_num=self._num_heads,
            head_dim=geometry.size,
            layer_num=geometry.layers,
            device="cpu",
            enable_memory_saver=False,
            start_layer=0,
            end_layer=geometry.layers - 1,
        )

    def make_pool(self, layout: str, num_pages: int) -> HostKVCache:
        """Make a host pool for keys and values."""
        geometry = self._geometry
        return MHATokenToKVPoolHost(
            self.device.get_device_pool_infos()[0].buffer_info,
            host_to_device_ratio=2.0,
            host_size=0,
            page_size=geometry.page_tokens,
            layout=layout,
            pin_memory=False,
            device_capacity_tokens=geometry.page_tokens * 4,
            start_layer=0,
            end_layer=geometry.layers - 1,
            host_token_capacity=num_pages * geometry.page_tokens,
        )

    def attach(self) -> None:
        """Attach the storage, and wait until ours has found what it held before."""
        starts_now = mock.patch.object(origin, "engine_start_s", time.time)
        with starts_now, get_parallel().override(**self._place):
            self.controller.attach_storage_backend(
                self._backend,
                prefetch_threshold=TOKENS,
                storage_backend_extra_config=dict(self.options),
                **self._attach_arguments(),
            )
        self.storage = self.controller.storage_backend
        if isinstance(self.storage, FlexKVHiCacheStorage):
            stores = self.storage._stores
            stores._identification.join()
            for _, store in stores.opened:
                store.wait_restored()

    def _attach_arguments(self) -> dict[str, Any]:
        """Return what this kind of controller wants to know besides."""
        return {}

    def attach_again(self) -> None:
        """Detach the storage and attach a new one."""
        self.controller.detach_storage_backend()
        self.attach()

    def backup(self, tokens: list[int], page_ids: Sequence[int]) -> None:
        """Let the backup thread store pages."""
        keys = get_storage_hash_str(tokens, None, page_size=TOKENS)
        self.controller.write_storage(self.indices(page_ids), tokens, keys, prefix_keys=[])
        operation = self.controller.ack_backup_queue.get(timeout=WAIT_S)
        assert operation.completed_tokens == len(tokens)

    def prefetch(self, tokens: list[int], page_ids: Sequence[int]) -> int:
        """Let the prefetch threads look for a prompt and load it; return the tokens loaded."""
        self.controller.prefetch("r", tokens, None, [])
        operation = self.controller.prefetch_hit_queue.get(timeout=WAIT_S)
        num_pages = operation.storage_hit_count // TOKENS
        if not num_pages:
            return 0
        operation.host_indices = self.indices(list(page_ids)[:num_pages])
        self.controller.prefetch_buffer.put(operation)
        loaded = 0
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=WAIT_S)
            if ack.completed_req:
                return loaded
            loaded = ack.completed_tokens

    def indices(self, page_ids: Sequence[int]) -> torch.Tensor:
        """Return the token indices of host pages."""
        return torch.cat([torch.arange(page * TOKENS, (page + 1) * TOKENS) for page in page_ids])

    def fill(self, seed: int) -> None:
        """Fill the host pool with random numbers."""
        generator = torch.Generator().manual_seed(seed)
        self.pool.kv_buffer.copy_(torch.randn(self.pool.kv_buffer.shape, generator=generator))

    def page_bytes(self, page_id: int) -> bytes:
        """Return the content of a host page."""
        return self.logical_page(page_id).numpy().tobytes()

    def logical_page(self, page_id: int) -> torch.Tensor:
        """Return `[plane, L, N, H, D]` of a host page, in whatever order the pool has it."""
        buffer, tokens = self._planes, slice(page_id * TOKENS, (page_id + 1) * TOKENS)
        match self.pool.layout:
            case "layer_first":
                page = buffer[:, :, tokens]
            case "page_first":
                page = buffer[:, tokens].transpose(1, 2)
            case "page_first_direct":
                page = buffer[:, page_id]
            case "page_head":
                page = buffer[:, page_id].permute(0, 3, 2, 1, 4)
        return page.contiguous()

    @property
    def _planes(self) -> torch.Tensor:
        """The host pool, with the keys and the values first."""
        return self.pool.kv_buffer

    def close(self) -> None:
        """Detach the storage."""
        self.controller.detach_storage_backend()


_POPPED = ("prefetch_threshold", "hicache_storage_pass_prefix_keys")
