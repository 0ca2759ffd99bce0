"""Moves one rank's KV between its GPU and host memory."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from flexkv_connectors.session.deployment import Deployment
from flexkv_core.block.layout import PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.pinning import PinnedPool, find_cuda_runtime
from flexkv_core.data.transfer.cuda_device import CudaDevice
from flexkv_core.data.transfer.device import Device, Stream
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.data.transfer.pages import check_fit
from flexkv_core.data.transfer.segments import Limits
from flexkv_core.errors import ConfigError, LayoutError, TierError

__all__ = ["GpuShare", "StagingSplit", "staging_places"]

logger = logging.getLogger(__name__)

_PLACES_PER_LOAD_PLACE = 5
"""One staging block in five is for loads, which reuse it in rounds. Not tuned on a GPU."""

_FREE_DIVISOR = 4
"""By default, staging takes at most a quarter of what is free. vLLM has no hook before it has
measured what the model needs and has given the rest of `gpu_memory_utilization` to KV; its graphs
are captured later and need room, too."""

_WARM_UP_S = 60


class StagingSplit(NamedTuple):
    """How many blocks each of the two parts of staging holds."""

    save: int
    load: int


def staging_places(
    block_bytes: int, step_blocks: int, free_bytes: int, asked_bytes: int | None
) -> StagingSplit:
    """Divide the staging area of a device.

    Args:
        block_bytes: A rank's share of a block.
        step_blocks: Blocks that a step computes; by default there is room to save all of them.
        free_bytes: Free memory of the device.
        asked_bytes: The configured size of staging; None for the default.

    Raises:
        ConfigError: There is no room for one block to save and one to load, or for what was
            configured.
    """
    if asked_bytes is None:
        most_places = free_bytes // _FREE_DIVISOR // block_bytes
        step_places = -(-step_blocks * _PLACES_PER_LOAD_PLACE // (_PLACES_PER_LOAD_PLACE - 1))
        num_places = min(step_places, most_places)
    else:
        num_places = asked_bytes // block_bytes
    if num_places < 2 or num_places * block_bytes > free_bytes:  # noqa: PLR2004 one each way
        msg = (
            f"staging on the GPU gets {num_places} blocks of {block_bytes} bytes with {free_bytes} "
            "bytes free, and two are needed: lower gpu_memory_utilization or block_tokens, or set "
            "gpu_staging_mb to what there is room for"
        )
        raise ConfigError(msg)
    num_load_places = max(1, num_places // _PLACES_PER_LOAD_PLACE)
    return StagingSplit(num_places - num_load_places, num_load_places)


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
        """Pin `pool` and allocate staging memory on the device of `layers`.

        Raises:
            ConfigError: The device is full.
            LayoutError: K and V of a token lie apart in a page, or the pages are of another model.
            TierError: The host pool cannot be pinned, or the device copies nothing in time.

        Cost: touches and pins every page of the pool, and compiles the kernel.
        """
        if pages.rest is not None:
            raise LayoutError("K and V lie apart in a page: no GPU kernel is known to keep them so")
        cuda = find_cuda_runtime()
        assert cuda is not None, "the engine's KV is on a GPU"
        fmt = deployment.block_format
        check_fit(pool, fmt, pages)
        places = _places_on(layers[0].device, deployment)
        self._pinned = PinnedPool(pool, cuda)
        device = CudaDevice(layers, fmt, pool, num_places=places.save + places.load)
        _warm_up(device)
        limits = Limits(
            num_pages=pages.num_pages,
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
        """Unpin the host pool; no copy may be in flight."""
        self._pinned.close()


def _places_on(device: torch.device, deployment: Deployment) -> StagingSplit:
    block_bytes = deployment.block_format.block_bytes
    free_bytes, _ = torch.cuda.mem_get_info(device)
    step_blocks = -(-deployment.step_tokens // deployment.block_tokens)
    asked_bytes = deployment.cache.gpu_staging_bytes
    places = staging_places(block_bytes, step_blocks, free_bytes, asked_bytes)
    logger.info("gpu.staging save_blocks=%d load_blocks=%d block_bytes=%d", *places, block_bytes)
    return places


def _warm_up(device: Device) -> None:
    """Copy a page out and back, so that Triton compiles now and does not stall a step later.

    Raises:
        TierError: The copy has not ended in time.
    """
    first = np.zeros(1, np.int64)
    device.gather(first, first)
    device.wait(Stream.IN, device.record(Stream.COMPUTE))
    device.scatter(first, first)
    if not device.wait_for(device.record(Stream.IN), _WARM_UP_S):
        raise TierError("host", f"the GPU has not copied a page in {_WARM_UP_S} s")
