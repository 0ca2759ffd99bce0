"""The CPU lane keeps the contract of lanes, saving and loading, and so does one that delays it."""

import time

import msgspec
import numpy as np
import pytest
from cpu_lane_rig import make_rig, offload, onboard

from flexkv_core.plan import StoredBlocks
from flexkv_core.testing.doubles import DelayingLane
from flexkv_core.testing.geometry import read_block, write_page
from flexkv_core.testing.lane_contract import LaneCase, LaneContract


class CpuLaneCase(LaneCase):
    """Saves or loads between the pages and the slots of a rig."""

    def __init__(self, axes, *, saves):
        self.rig = make_rig(axes, pages_per_block=2, P=1 + ("P" in axes))
        self.lane, self.rank, self.clock_s = self.rig.lane, 7, time.monotonic()
        self.foreign = StoredBlocks("ssd", [bytes(32)] * 2)
        self.saves = saves
        if not saves:
            memory = np.frombuffer(self.rig.host.buffer, np.uint8)
            memory[:] = np.random.default_rng(3).integers(0, 256, memory.size, np.uint8)

    def plan(self, job_id, num_blocks):
        page_ids = [4 * job_id - 4 + page for page in (2, 0, 1, 3)][: 2 * num_blocks]
        slots = [2 * job_id - 2, 2 * job_id - 1][:num_blocks]
        make = offload(page_ids, slots) if self.saves else onboard(slots, page_ids)
        return msgspec.structs.replace(make, job_id=job_id)

    def broken_plan(self, job_id):
        plan = offload([0, 1, 2, 12], [0, 1]) if self.saves else onboard([0, 1], [0, 1, 2, 12])
        return msgspec.structs.replace(plan, job_id=job_id)

    def target(self):
        return bytes(self.rig.host.buffer) if self.saves else self.rig.memory.tobytes()

    def target_after(self, plan):
        if self.saves:
            memory = np.frombuffer(self.rig.host.buffer, np.uint8).copy()
            for index, slot in enumerate(np.frombuffer(plan.target.slots, np.int64)):
                block = read_block(self.rig.pages, plan.source.page_ids[2 * index : 2 * index + 2])
                start = slot * self.rig.host.slot_stride
                memory[start : start + len(block)] = np.frombuffer(block, np.uint8)
            return memory.tobytes()
        before = self.rig.memory.copy()
        for index, page in enumerate(plan.target.page_ids):
            slot = np.frombuffer(plan.source.slots, np.int64)[index // 2]
            write_page(self.rig.pages, page, index % 2, self.rig.slot(slot))
        after = self.rig.memory.tobytes()
        self.rig.memory[:] = before
        return after


@pytest.mark.parametrize("axes", ["LBHNC", "LBNHC"])
class TestCpuLaneSaving(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CpuLaneCase(axes, saves=True)


@pytest.mark.parametrize("axes", ["LBHNC", "LBNHC"])
class TestCpuLaneLoading(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CpuLaneCase(axes, saves=False)


class DelayedCase(CpuLaneCase):
    """The same behind a lane that holds its results back."""

    def __init__(self):
        super().__init__("LBHNC", saves=True)
        self.lane = DelayingLane(self.rig.lane)

    def poll(self):
        self.lane.release_all()
        return self.lane.poll()


class TestDelayingLane(LaneContract):
    @pytest.fixture
    def case(self):
        return DelayedCase()
