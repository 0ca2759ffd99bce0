"""The device port on a CUDA GPU: torch's streams and copies, and one Triton kernel.

Not yet run on a GPU: tested with the kernel in Triton's interpreter and with streams that run at
once.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from flexkv_kernels import PageViews, copy_pages
from typing_extensions import override

from flexkv_core.block.layout import BlockFormat
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.device import Device, Event, Ids, Stream
from flexkv_core.data.transfer.row_copies import find_row_copy

__all__ = ["CudaDevice"]

_POLL_S = 0.0005
"""Between polls while a thread waits for the device; copying a block takes about as long."""


class CudaDevice(Device):
    """One rank's pages on its GPU, staging beside them, and its pinned host pool.

    A block is contiguous in staging and in its slot, so each is one copy of the copy engine, 0.25
    to 8 MiB. A copy never crosses from one slot into the next, as those may be pinned separately.
    """

    def __init__(
        self,
        slabs: Sequence[torch.Tensor],
        fmt: BlockFormat,
        host: HostPool,
        *,
        num_places: int,
    ) -> None:
        """Allocate the staging area with torch.

        Args:
            slabs: The engine's pages, `[B, H, N, C]` on the GPU, one slab for each layer, or for
                its K and its V; all of one shape, strides and dtype, C innermost.
            fmt: How a block is stored.
            host: Pinned by the caller for as long as this device is used.
            num_places: Blocks in staging.

        Raises:
            ValueError: The slabs do not have one layout.
        """
        pages = PageViews(slabs)
        self.num_places = num_places
        self.pages_per_block = fmt.block_tokens // pages.page_tokens
        self._pages = pages
        self._staging = torch.empty(
            (num_places, fmt.block_bytes), dtype=torch.uint8, device=pages.device
        )
        shape = (fmt.num_heads, fmt.num_layers, fmt.block_tokens, fmt.token_bytes)
        blocks = self._staging.unflatten(1, shape)
        self._parts = PageViews.of_blocks(blocks, num_planes=len(pages.slabs) // fmt.num_layers)
        memory = np.frombuffer(host.buffer, np.uint8)[: host.num_slots * host.slot_stride]
        slots = torch.from_numpy(memory).view(host.num_slots, host.slot_stride)
        self._slots = slots[:, : fmt.block_bytes]
        self._copy_rows = find_row_copy()
        self._side_streams = {
            stream: torch.cuda.Stream(pages.device) for stream in (Stream.OUT, Stream.IN)
        }

    @override
    def gather(self, page_ids: Ids, part_ids: Ids) -> None:
        with torch.cuda.stream(self._on(Stream.COMPUTE)):
            copy_pages(self._pages, _tensor(page_ids), self._parts, _tensor(part_ids))

    @override
    def copy_out(self, places: Ids, slots: Ids) -> None:
        self._copy_rows(self._slots, slots, self._staging, places, self._on(Stream.OUT))

    @override
    def copy_in(self, slots: Ids, places: Ids) -> None:
        self._copy_rows(self._staging, places, self._slots, slots, self._on(Stream.IN))

    @override
    def scatter(self, part_ids: Ids, page_ids: Ids) -> None:
        with torch.cuda.stream(self._on(Stream.IN)):
            copy_pages(self._parts, _tensor(part_ids), self._pages, _tensor(page_ids))

    @override
    def record(self, stream: Stream) -> Event:
        event: Event = self._on(stream).record_event()
        return event

    @override
    def wait(self, stream: Stream, event: Event) -> None:
        self._on(stream).wait_event(event)

    @override
    def wait_for(self, event: Event, timeout_s: float) -> bool:
        end_s = time.monotonic() + timeout_s
        while not event.query():
            if time.monotonic() >= end_s:
                return False
            time.sleep(_POLL_S)
        return True

    def _on(self, stream: Stream) -> torch.cuda.Stream:
        """Return the torch stream; the engine's own may be another one in its next step."""
        return self._side_streams.get(stream) or torch.cuda.current_stream(self._pages.device)


def _tensor(ids: Ids) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids))
