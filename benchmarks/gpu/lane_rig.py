"""A GPU lane between random pages on the device and a pinned host pool."""

import numpy as np

from benchmarks.gpu.shapes import Model, block_format, make_slabs
from flexkv_core.block.types import JobId
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.pinning import PinnedPool, find_cuda_runtime
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.data.transfer.segments import Limits
from flexkv_core.plan import Endpoint, EnginePages, HostSlots, Status, TransferPlan


class LaneRig:
    """`num_blocks` blocks in pages of the device, and as many others to load into."""

    def __init__(
        self, model: Model, axes: str, block_tokens: int, page_tokens: int, num_blocks: int
    ) -> None:
        from flexkv_core.data.transfer.cuda_device import CudaDevice  # noqa: PLC0415 imports torch

        per_block = block_tokens // page_tokens
        num_pages = 2 * num_blocks * per_block
        fmt = block_format(model, block_tokens)
        self.num_bytes = num_blocks * fmt.block_bytes
        self.slabs = make_slabs(model, axes, num_pages, page_tokens)
        self.host = HostPool.create(2 * num_blocks, fmt.block_bytes)
        cuda = find_cuda_runtime()
        self._pinned = PinnedPool(self.host, cuda) if cuda else None
        load_places = max(1, min(num_blocks, (64 << 20) // fmt.block_bytes))
        device = CudaDevice(self.slabs, fmt, self.host, num_places=num_blocks + load_places)
        self.lane = GpuLane(
            0,
            device,
            Limits(num_pages, per_block),
            num_host_slots=2 * num_blocks,
            block_bytes=fmt.block_bytes,
            load_places=load_places,
        )
        blocks = np.random.default_rng(0).permutation(2 * num_blocks)
        self._pages = [
            EnginePages((half[:, None] * per_block + np.arange(per_block)).ravel().tolist())
            for half in (blocks[:num_blocks], blocks[num_blocks:])
        ]
        slots = np.random.default_rng(1).permutation(2 * num_blocks)
        self._slots = [
            HostSlots(slots[:num_blocks].tobytes()),
            HostSlots(slots[num_blocks:].tobytes()),
        ]
        self._num_blocks = num_blocks

    def save(self) -> None:
        """Queue the first half of the pages to the first half of the slots."""
        self._submit(self._pages[0], self._slots[0])

    def load(self) -> None:
        """Queue the second half of the slots to the second half of the pages."""
        self._submit(self._slots[1], self._pages[1])

    def both(self) -> None:
        """Queue a save and a load."""
        self.save()
        self.load()

    def finish(self) -> None:
        """Wait for what is queued."""
        assert self.lane.drain(60.0)
        for result in self.lane.poll():
            assert result.status is Status.OK, result.error

    def close(self) -> None:
        """Give the memory back."""
        self.finish()
        if self._pinned is not None:
            self._pinned.close()
        self.host.close()

    def _submit(self, source: Endpoint, target: Endpoint) -> None:
        self.lane.submit(
            TransferPlan(job_id=JobId(1), source=source, target=target, num_blocks=self._num_blocks)
        )
