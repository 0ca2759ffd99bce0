"""Random transfers on the real device, with passes that reuse the pages at once: no byte is wrong.

Every page holds one value. A page is given a new value on the compute stream right before it is
saved and another right after, so a copy that is not ordered against the engine is seen.
"""

import random
from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.lane_rig import LaneRig
from benchmarks.gpu.machine import synchronize
from benchmarks.gpu.shapes import LAYOUTS, Model
from benchmarks.rows import Row
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan
from flexkv_core.types import JobId

SMALL = Model("small", 4, 2, 64)
NUM_BLOCKS = 64
PER_BLOCK = 2


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
            "wrong_bytes": trial.num_wrong_bytes,
        }


class Trial:
    """One layout: rounds of saves into slots, and of loads of them into other pages."""

    def __init__(self, axes: str) -> None:
        self.rig = LaneRig(SMALL, axes, 16 * PER_BLOCK, 16, NUM_BLOCKS)
        self.num_transfers = 0
        self.num_wrong_bytes = 0
        self._rng = random.Random(axes)

    def round(self) -> None:
        """Fill, save and overwrite; then load what was saved into other pages, and compare all."""
        blocks = self._rng.sample(range(2 * NUM_BLOCKS), 24)
        values = [self._rng.randrange(256) for _ in blocks[:16]]
        slots = self._rng.sample(range(2 * NUM_BLOCKS), 16)
        for block, slot, value in zip(blocks, slots, values, strict=False):
            self._fill(block, value)
            self._submit(_pages(block), _slots(slot))
            self._fill(block, value ^ 0xFF)
        self.rig.finish()
        for slot, value in zip(slots, values, strict=True):
            self._count(self._slot(slot) != value)
        for block, slot in zip(blocks[8:], slots, strict=True):
            self._fill(block, 0x5A)
            self._submit(_slots(slot), _pages(block))
        self.rig.finish()
        synchronize()
        for block, value in zip(blocks[8:], values, strict=True):
            for slab in self.rig.slabs:
                pages = slab[block * PER_BLOCK : (block + 1) * PER_BLOCK].cpu().numpy()
                self._count(pages != value)

    def _fill(self, block: int, value: int) -> None:
        for slab in self.rig.slabs:
            slab[block * PER_BLOCK : (block + 1) * PER_BLOCK].fill_(value)

    def _submit(self, source: EnginePages | HostSlots, target: EnginePages | HostSlots) -> None:
        plan = TransferPlan(job_id=JobId(1), source=source, target=target, num_blocks=1)
        self.rig.lane.submit(plan)
        self.num_transfers += 1
        for result in self.rig.lane.poll():
            assert result.status is Status.OK, result.error

    def _slot(self, slot: int) -> np.ndarray:
        host = self.rig.host
        start = slot * host.slot_stride
        return np.frombuffer(host.buffer, np.uint8)[start : start + host.slot_bytes]

    def _count(self, wrong: np.ndarray) -> None:
        self.num_wrong_bytes += int(np.count_nonzero(wrong))


def _pages(block: int) -> EnginePages:
    return EnginePages(list(range(block * PER_BLOCK, (block + 1) * PER_BLOCK)))


def _slots(slot: int) -> HostSlots:
    return HostSlots(np.array([slot], np.int64).tobytes())
