"""What one rank needs to move KV between its GPU and host memory."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from flexkv_connectors.vllm.deployment import Deployment
from flexkv_core.errors import ConfigError
from flexkv_core.layout import PagePool
from flexkv_core.tiers.host import HostPool
from flexkv_core.tiers.pinning import PinnedPool, find_cuda_runtime
from flexkv_core.transfer.cuda_device import CudaDevice
from flexkv_core.transfer.gpu_lane import GpuLane
from flexkv_core.transfer.segments import Limits

__all__ = ["GpuShare", "Places", "staging_places"]

_SAVE_BYTES = 256 << 20
"""What a step may save: 2048 tokens of an 8B model with 8 KV heads. Not tuned on a GPU."""

_LOAD_BYTES = 64 << 20
"""What a load has in device memory at once. Not tuned on a GPU."""

_MOST_OF_FREE = 4
"""Staging takes no more than a quarter of the device memory that vLLM has left: it asks for ours
only after it has measured what the model needs and has taken the rest for KV."""


class Places(NamedTuple):
    """Blocks in the two parts of staging."""

    save: int
    load: int


def staging_places(block_bytes: int, free_bytes: int) -> Places:
    """Divide staging on a device with `free_bytes` free.

    Raises:
        ConfigError: Not even a block fits for each direction.
    """
    budget = free_bytes // _MOST_OF_FREE
    load = max(1, min(_LOAD_BYTES, budget // 2) // block_bytes)
    save = min(max(1, _SAVE_BYTES // block_bytes), budget // block_bytes - load)
    if save < 1:
        msg = (
            f"the GPU has {free_bytes} bytes free, of which staging may take {budget}, but a block "
            f"takes {block_bytes} and two are needed: lower gpu_memory_utilization or block_tokens"
        )
        raise ConfigError(msg)
    return Places(save, load)


class GpuShare:
    """A lane between a rank's GPU and its host pool, and the pinning of that pool.

    Thread: the model runner's.
    """

    def __init__(
        self,
        deployment: Deployment,
        layers: Sequence[torch.Tensor],
        pages: PagePool,
        pool: HostPool,
    ) -> None:
        """Pin `pool` and take staging memory on the device of `layers`.

        Raises:
            ConfigError: `load_async` is false, or the device is full.
            TierError: The host pool cannot be pinned.
        """
        if not deployment.cache.load_async:
            msg = "load_async is false, but a GPU loads beside the engine's steps: leave it out"
            raise ConfigError(msg)
        cuda = find_cuda_runtime()
        assert cuda is not None, "the engine's KV is on a GPU"
        fmt = deployment.block_format
        free_bytes, _ = torch.cuda.mem_get_info(layers[0].device)
        places = staging_places(fmt.block_bytes, free_bytes)
        self._pinned = PinnedPool(pool, cuda)
        device = CudaDevice(layers, fmt, pool, num_places=places.save + places.load)
        limits = Limits(
            num_pages=pages.num_pages,
            num_layers=pages.num_layers,
            pages_per_block=device.pages_per_block,
        )
        self.lane = GpuLane(
            deployment.rank,
            device,
            limits,
            num_host_slots=pool.num_slots,
            block_bytes=fmt.block_bytes,
            load_places=places.load,
        )

    def close(self) -> None:
        """Unpin the host pool; no copy may be under way."""
        self._pinned.close()
