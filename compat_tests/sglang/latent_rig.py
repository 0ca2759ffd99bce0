"""The same controller over pools of latents, which are the same on every rank."""

import torch
from controller_rig import LAYERS, TOKENS, ControllerRig
from sglang.srt.mem_cache.memory_pool import KVCache, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host import HostKVCache
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

RANK, ROPE = 48, 16


class LatentRig(ControllerRig):
    """A rank of a model of multi-head latent attention."""

    def _make_device(self) -> KVCache:
        return MLATokenToKVPool(
            size=TOKENS * 4,
            page_size=TOKENS,
            dtype=torch.float32,
            kv_lora_rank=RANK,
            qk_rope_head_dim=ROPE,
            layer_num=LAYERS,
            device="cpu",
            enable_memory_saver=False,
            start_layer=0,
            end_layer=LAYERS - 1,
        )

    def make_pool(self, layout: str, num_pages: int) -> HostKVCache:
        return MLATokenToKVPoolHost(
            self.device.get_device_pool_infos()[0].buffer_info,
            host_to_device_ratio=2.0,
            host_size=0,
            page_size=TOKENS,
            layout=layout,
            pin_memory=False,
            device_capacity_tokens=TOKENS * 4,
            start_layer=0,
            end_layer=LAYERS - 1,
            target_layer_num=LAYERS,
            host_token_capacity=num_pages * TOKENS,
        )

    @property
    def _planes(self) -> torch.Tensor:
        return self.pool.kv_buffer[None]
