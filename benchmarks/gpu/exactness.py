"""Random transfers on the real device, with passes that reuse the pages at once: no byte is wrong.

Every block has random bytes of its own. They are written on the compute stream right before a save
and destroyed right after it, so a copy that is not ordered against the engine is seen.
"""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.lane_rig import LaneRig
from benchmarks.gpu.machine import on_device, synchronize
from benchmarks.gpu.shapes import LAYOUTS, Model
from benchmarks.rows import Row
from flexkv_core.block.types import JobId
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan

if TYPE_CHECKING:
    import torch

SMALL = Model("small", 4, 2, 64)
PAGE_TOKENS = 16
PER_BLOCK = 2
NUM_BLOCKS = 64
NUM_SAVED = 16
"""Blocks of a round. It loads them into other pages, and into half of those they came from."""

UNTOUCHED = 0x5A


def exactness(num_transfers: int, budget: Budget) -> Iterator[Row]:
    """Save and load back, in every layout, until there were enough transfers or no more time."""
    for axes in LAYOUTS:
        trial = Trial(axes)
        while trial.num_transfers < num_transfers and not budget.is_spent:
            trial.round()
        trial.rig.close()
        yield {
            "benchmark": "gpu_exactness",
            "layout": axes,
            "transfers": trial.num_transfers,
            "blocks": trial.num_blocks,
            "wrong_bytes": trial.num_wrong_bytes,
        }


class Trial:
    """One layout: rounds of saves into slots, and of loads of them into other pages."""

    def __init__(self, axes: str) -> None:
        self.rig = LaneRig(SMALL, axes, PAGE_TOKENS * PER_BLOCK, PAGE_TOKENS, NUM_BLOCKS)
        self.num_transfers = 0
        self.num_blocks = 0
        self.num_wrong_bytes = 0
        self._rng = random.Random(axes)

    def round(self) -> None:
        """Save new content and destroy it; then load it into other pages; compare all of it."""
        blocks = self._rng.sample(range(2 * NUM_BLOCKS), NUM_SAVED * 3 // 2)
        slots = self._rng.sample(range(2 * NUM_BLOCKS), NUM_SAVED)
        contents = self._new_contents()
        for run in self._runs():
            self._save(blocks[run], slots[run], contents[run])
        self.rig.finish()
        for slot, content in zip(slots, contents, strict=True):
            self._count(self._slot(slot) != _as_stored(content).cpu().numpy())
        blocks = blocks[-NUM_SAVED:]
        for run in self._runs():
            self._load(slots[run], blocks[run], contents[run])
        self.rig.finish()
        synchronize()
        page_ids = _page_ids(blocks)
        for slab, pages in zip(self.rig.slabs, contents.unbind(1), strict=True):
            self._count((slab[page_ids] != pages.flatten(0, 1)).cpu().numpy())

    def _new_contents(self) -> "torch.Tensor":
        """Return random bytes for the blocks of a round: `[blocks, slabs, pages, H, N, C]`."""
        slabs = self.rig.slabs
        shape = NUM_SAVED, len(slabs), PER_BLOCK, *slabs[0].shape[1:]
        return on_device(int(np.prod(shape))).view(shape)

    def _runs(self) -> Iterator[slice]:
        """Cut the blocks of a round into transfers of one to three."""
        begin = 0
        while begin < NUM_SAVED:
            end = min(NUM_SAVED, begin + self._rng.randint(1, 3))
            yield slice(begin, end)
            begin = end

    def _save(self, blocks: list[int], slots: list[int], contents: "torch.Tensor") -> None:
        self._write(blocks, contents)
        self._submit(_engine_pages(blocks), _slots(slots))
        self._write(blocks, contents ^ 0xFF)

    def _load(self, slots: list[int], blocks: list[int], contents: "torch.Tensor") -> None:
        """Load some blocks, sometimes without the first page, which is to stay as it is."""
        skipped = self._rng.randint(0, 1)
        contents[0, :, :skipped] = UNTOUCHED
        for slab in self.rig.slabs:
            for block in blocks:
                slab[_pages(block)] = UNTOUCHED
        self._submit(_slots(slots), _engine_pages(blocks, skipped))

    def _write(self, blocks: list[int], contents: "torch.Tensor") -> None:
        for block, content in zip(blocks, contents, strict=True):
            for slab, pages in zip(self.rig.slabs, content, strict=True):
                slab[_pages(block)] = pages

    def _submit(self, source: EnginePages | HostSlots, target: EnginePages | HostSlots) -> None:
        slots = source if isinstance(source, HostSlots) else target
        num_blocks = len(slots.slots) // 8
        plan = TransferPlan(job_id=JobId(1), source=source, target=target, num_blocks=num_blocks)
        self.rig.lane.submit(plan)
        self.num_transfers += 1
        self.num_blocks += num_blocks
        for result in self.rig.lane.poll():
            assert result.status is Status.OK, result.error

    def _slot(self, slot: int) -> np.ndarray:
        host = self.rig.host
        start = slot * host.slot_stride
        return np.frombuffer(host.buffer, np.uint8)[start : start + host.slot_bytes]

    def _count(self, wrong: np.ndarray) -> None:
        self.num_wrong_bytes += int(np.count_nonzero(wrong))


def _as_stored(content: "torch.Tensor") -> "torch.Tensor":
    """Return `[slabs, pages, H, N, C]` as the bytes of a block, `[H, L, pages, N, P, C]`."""
    return content.unflatten(0, (SMALL.num_layers, -1)).permute(3, 0, 2, 4, 1, 5).flatten()


def _pages(block: int) -> slice:
    return slice(block * PER_BLOCK, (block + 1) * PER_BLOCK)


def _page_ids(blocks: list[int]) -> list[int]:
    return [block * PER_BLOCK + part for block in blocks for part in range(PER_BLOCK)]


def _engine_pages(blocks: list[int], skipped: int = 0) -> EnginePages:
    return EnginePages(_page_ids(blocks)[skipped:], first_page=skipped)


def _slots(slots: list[int]) -> HostSlots:
    return HostSlots(np.array(slots, np.int64).tobytes())
