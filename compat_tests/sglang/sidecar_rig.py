"""SGLang's real controller for models that keep more than KV, over CPU pools."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from controller_rig import LAYERS, TOKENS, WAIT_S, ControllerRig
from latent_rig import LatentRig
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.pool_host import HostKVCache, HostPoolGroup, PoolEntry
from sglang.srt.mem_cache.pool_host.dsa import DSAIndexerPoolHost, make_dsa_indexer_pool_decl
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost
from sglang.srt.mem_cache.utils import get_storage_hash_str
from typing_extensions import override

__all__ = ["IndexerRig", "SidecarRig", "indexer", "state", "window"]

NUM_PAGES = 64

Maker = Callable[["SidecarRig"], HostKVCache]


def window(rig: "SidecarRig") -> HostKVCache:
    """Make the pool of a sliding window: keys and values, as the KV's own is."""
    return rig.make_pool(rig.pool.layout, NUM_PAGES)


def state(rig: "SidecarRig") -> HostKVCache:
    """Make a pool of states of linear attention, one for each page: two tensors of two types."""
    capacity = NUM_PAGES - 1  # SGLang adds one
    states = MambaStateBufferInfo(
        temporal=torch.zeros(LAYERS, capacity, 2, 8, 16, dtype=torch.float32),
        conv=(torch.zeros(LAYERS, capacity, 24, 3, dtype=torch.bfloat16),),
    )
    return MambaPoolHost(
        states, 1.0, 0, device_capacity=capacity, pin_memory=False, layout=rig.pool.layout
    )


def indexer(rig: "SidecarRig") -> HostKVCache:
    """Make the pool of the indexer of sparse attention, beside latents."""
    decl = make_dsa_indexer_pool_decl(_sparse_device())
    return DSAIndexerPoolHost(decl, anchor_host=rig.pool, pin_memory=False)


def _sparse_device() -> Any:
    """Return what the host pool reads of SGLang's device pool, which has pages of 64 tokens."""
    return SimpleNamespace(
        page_size=TOKENS,
        index_page_size=TOKENS,
        index_head_dim=128,
        quant_block_size=128,
        skip_topk_layers=[False, True, False, False, True],
        index_k_with_scale_buffer=[torch.zeros(1, dtype=torch.uint8)] * LAYERS,
        store_dtype=torch.uint8,
        device="cpu",
        layer_shard_enabled=False,
        layer_num=LAYERS,
        start_layer=0,
        end_layer=LAYERS - 1,
    )


class SidecarRig(ControllerRig):
    """A rank with pools beside its KV, each made by a function and known by a name."""

    def __init__(self, *arguments: Any, sidecars: dict[PoolName, Maker], **options: Any) -> None:
        self._makers = sidecars
        super().__init__(*arguments, **options)

    @override
    def _make_controller(
        self, allocator: PagedTokenToKVPoolAllocator, page_tokens: int
    ) -> HiCacheController:
        self.sidecars = {name: make(self) for name, make in self._makers.items()}
        pools = {PoolName.KV: self.pool} | self.sidecars
        self.entries = [
            PoolEntry(name, pool, self.device, int, name is PoolName.KV)
            for name, pool in pools.items()
        ]
        group = HostPoolGroup(self.entries)
        return HybridCacheController(allocator, group, page_tokens, None, None, io_backend="direct")

    @override
    def _attach_arguments(self) -> dict[str, Any]:
        return {"host_pools": self.entries}

    @override
    def fill(self, seed: int) -> None:
        for pool in (self.pool, *self.sidecars.values()):
            for tensor in tensors_of(pool):
                content = tensor.view(torch.uint8)
                generator = torch.Generator().manual_seed(seed)
                content.random_(0, 256, generator=generator)
                seed += 1

    def sidecar_page(self, name: PoolName, page_id: int) -> bytes:
        """Return the content of a page of a pool beside the KV, as SGLang cuts it out."""
        pool = self.sidecars[name]
        page = pool.get_data_page(page_id * pool.page_size)
        return page.contiguous().view(torch.uint8).numpy().tobytes()

    def sidecar_indices(self, name: PoolName, page_ids: Sequence[int]) -> torch.Tensor:
        """Return the indices of pages of a pool beside the KV."""
        size = self.sidecars[name].page_size
        return torch.cat([torch.arange(page * size, (page + 1) * size) for page in page_ids])

    def backup_with(
        self, tokens: list[int], page_ids: Sequence[int], transfers: list[PoolTransfer]
    ) -> dict[str, int]:
        """Let the backup thread store pages and what belongs to them; return what was stored."""
        keys = get_storage_hash_str(tokens, None, page_size=TOKENS)
        self.controller.write_storage(
            self.indices(page_ids), tokens, keys, prefix_keys=[], extra_pools=transfers
        )
        operation = self.controller.ack_backup_queue.get(timeout=WAIT_S)
        assert operation.completed_tokens == len(tokens)
        return operation.pool_storage_result.extra_pool_hit_pages

    def prefetch_with(
        self, tokens: list[int], page_ids: Sequence[int], transfers: list[PoolTransfer]
    ) -> tuple[int, dict[str, int]]:
        """Let the prefetch threads load a prompt; return tokens, and pages of each other pool."""
        handle = CacheRequestHandle("r", 0)
        self.controller.prefetch(handle, tokens, None, [], extra_pools=transfers)
        operation = self.controller.prefetch_hit_queue.get(timeout=WAIT_S)
        num_pages = operation.storage_hit_count // TOKENS
        if not num_pages:
            return 0, {}
        operation.host_indices = self.indices(list(page_ids)[:num_pages])
        self.controller._resolve_sidecar_kv_derived_pool_transfers(operation)
        self.controller.prefetch_buffer.put(operation)
        loaded, pages = 0, {}
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=WAIT_S)
            if ack.completed_req:
                return loaded, {name: number for name, number in pages.items() if number}
            if ack.completed_tokens is not None:
                loaded = ack.completed_tokens
            pages |= ack.pool_hits or {}

    def transfer(
        self,
        name: PoolName,
        keys: list[str],
        page_ids: Sequence[int],
        policy: PoolHitPolicy = PoolHitPolicy.TRAILING_PAGES,
    ) -> PoolTransfer:
        """Name pages of a pool with indices of its own."""
        indices = self.sidecar_indices(name, page_ids)
        return PoolTransfer(name=name, host_indices=indices, keys=keys, hit_policy=policy)


class IndexerRig(SidecarRig, LatentRig):
    """The same for a model of latents."""


def tensors_of(pool: HostKVCache) -> list[torch.Tensor]:
    """Return the memory of a host pool."""
    if isinstance(pool, MambaPoolHost | DSAIndexerPoolHost):
        return pool.get_hybrid_pool_buffer()
    return [pool.kv_buffer]
