"""A tier that reads and writes an engine's pages where they are."""

import threading
import time

import numpy as np
import pytest

from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import DictTier, ManualClock, SlowTier, TierWrapper
from flexkv_core.testing.geometry import POISON
from flexkv_core.testing.lane_contract import LaneCase, LaneContract

NUM_PAGES, PLANE_BYTES = 8, 300
RANK, WAIT_S = 3, 30


def key(number):
    return bytes([number]) * 32


class Pages(LaneCase):
    """Pages of an engine that keeps K and V apart, all different, and a tier with eight blocks."""

    rank = RANK
    foreign = HostSlots(np.array([0, 1], np.int64).tobytes())

    def __init__(self, *, saves=False, wrap=lambda tier: tier, clock=time.monotonic):
        self.planes = np.full((2, NUM_PAGES, PLANE_BYTES), POISON, np.uint8)
        pieces = [
            PagePiece(plane.ctypes.data, stride=PLANE_BYTES, num_bytes=PLANE_BYTES)
            for plane in self.planes
        ]
        memory, self.saves, self.clock_s = PageMemory(pieces, NUM_PAGES), saves, clock()
        self.inner = DictTier(memory)
        far = TierLane(RANK, wrap(self.inner), memory, num_threads=1, clock=clock)
        self.lane = DirectLane(RANK, far)
        content = np.random.default_rng(1).integers(0, 256, self.planes.shape, np.uint8)
        self.content = content
        self._fill()

    def _fill(self):
        poison = self.planes.copy()
        self.planes[:] = self.content
        if not self.saves:
            self.inner.write([TierBlock(key(at), None, at) for at in range(NUM_PAGES)], None)
            self.planes[:] = poison

    def plan(self, job_id, num_blocks):
        numbers = [2 * job_id, 2 * job_id + 1][:num_blocks]
        return self._plan(job_id, numbers, numbers[::-1])

    def broken_plan(self, job_id):
        return self._plan(job_id, [0, 1], [0, NUM_PAGES])

    def _plan(self, job_id, numbers, page_ids):
        ends = (EnginePages(page_ids), StoredBlocks("dict", [key(number) for number in numbers]))
        source, target = ends if self.saves else ends[::-1]
        return TransferPlan(job_id=job_id, source=source, target=target, num_blocks=len(numbers))

    def target(self):
        if self.saves:
            return b"".join(name + payload[:-4] for name, payload in sorted(self.stored.items()))
        return self.planes.tobytes()

    @property
    def stored(self):
        return self.inner.stored

    def target_after(self, plan):
        if self.saves:
            pairs = zip(plan.target.keys, plan.source.page_ids, strict=True)
            return b"".join(name + self.content[:, page].tobytes() for name, page in sorted(pairs))
        expected = self.planes.copy()
        for name, page in zip(plan.source.keys, plan.target.page_ids, strict=True):
            expected[:, page] = self.content[:, name[0]]
        return expected.tobytes()

    def end(self):
        self.lane.close()
        assert self.lane.drain(WAIT_S)


@pytest.mark.parametrize("saves", [True, False], ids=["saves", "loads"])
class TestDirectLane(LaneContract):
    @pytest.fixture
    def case(self, saves):
        case = Pages(saves=saves)
        yield case
        case.end()


def test_results_come_when_the_tier_has_ended_whatever_the_deadline_was():
    gate, clock = threading.Event(), ManualClock()
    slow = []
    case = Pages(wrap=lambda tier: slow.append(SlowTier(tier, gate)) or slow[0], clock=clock)
    case.lane.submit(case.plan(1, 1))
    slow[0].entered.acquire()
    clock.advance(1000)
    assert not case.lane.drain(0)
    assert not case.lane.poll()
    gate.set()
    assert case.lane.drain(WAIT_S)
    assert [result.status for result in case.lane.poll()] == [Status.OK]
    case.end()


def test_a_plan_that_is_cancelled_before_it_begins_changes_no_page():
    gate, slow = threading.Event(), []
    case = Pages(wrap=lambda tier: slow.append(SlowTier(tier, gate)) or slow[0])
    case.lane.submit(case.plan(1, 1))
    slow[0].entered.acquire()
    case.lane.submit(case.plan(2, 2))
    before = case.planes[:, 4:6].copy()
    case.lane.cancel(2)
    assert [(result.job_id, result.status) for result in case.lane.poll()] == [(2, Status.TIMEOUT)]
    gate.set()
    case.lane.wait(WAIT_S)
    assert [result.job_id for result in case.lane.poll()] == [1]
    assert (case.planes[:, 4:6] == before).all()
    case.end()


def test_several_plans_are_under_way_at_once():
    case = Pages()
    plans = [case.plan(job_id, 2) for job_id in (1, 2, 3)]
    for plan in plans:
        case.lane.submit(plan)
    assert case.lane.drain(WAIT_S)
    assert sorted(result.job_id for result in case.lane.poll()) == [1, 2, 3]
    for page in range(2, NUM_PAGES):
        assert (case.planes[:, page] == case.content[:, page ^ 1]).all()
    case.end()


def test_blocks_behind_one_that_is_bad_do_not_count():
    class Lossy(TierWrapper):
        def read(self, blocks, deadline_s):
            statuses = super().read(blocks, deadline_s)
            return [
                Status.CORRUPT if block.key == key(3) else status
                for block, status in zip(blocks, statuses, strict=True)
            ]

    case = Pages(wrap=Lossy)
    (result,) = case.run(case.plan(1, 2))
    assert (result.status, result.num_blocks) == (Status.CORRUPT, 1)
    case.end()
