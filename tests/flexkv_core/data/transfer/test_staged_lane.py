"""The lane between pages and a tier of keys: part by part, and nothing bad reaches a page."""

import threading
import time

import msgspec
import numpy as np
import pytest
from cpu_lane_rig import make_rig, slots_of

from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import DictTier, FaultyTier, ManualClock, SlowTier, TierWrapper
from flexkv_core.testing.geometry import read_block, write_page
from flexkv_core.testing.lane_contract import LaneCase, LaneContract

NUM_SLOTS = 4
MANY = NUM_SLOTS + 1
"""Blocks of a plan in three parts: the third has the slots of the first."""


class NotingTier(TierWrapper):
    """Notes the blocks of each call."""

    def __init__(self, inner):
        super().__init__(inner)
        self.calls = []

    def read(self, blocks, deadline_s):
        self.calls.append(blocks)
        return super().read(blocks, deadline_s)

    def write(self, blocks, deadline_s):
        self.calls.append(blocks)
        return super().write(blocks, deadline_s)


def key(number):
    return bytes([number]) * 32


class Staged(LaneCase):
    """Pages of random bytes, a few slots, and a dictionary as the tier."""

    def __init__(self, *, saves, wrap=lambda tier: tier, clock=time.monotonic):
        self.rig = make_rig("PLBNHC", P=2)
        self.tier = DictTier(self.rig.host.memory)
        self.wrapped = wrap(self.tier)
        far = TierLane(7, self.wrapped, self.rig.host.memory, num_threads=1, clock=clock)
        self.lane = StagedLane(7, self.rig.lane, far, range(NUM_SLOTS), clock=clock)
        self.rank, self.clock_s = 7, clock()
        self.foreign = slots_of(0, 1)
        self.saves = saves
        self.expected = {number: read_block(self.rig.pages, [number]) for number in range(12)}

    def plan(self, job_id, num_blocks, **changes):
        page_ids = [3 * job_id - page for page in (1, 3, 2, -7, -8)][:num_blocks]
        pages = EnginePages(page_ids)
        stored = StoredBlocks("dict", [key(10 * job_id + at) for at in range(num_blocks)])
        if not self.saves:
            for at, stored_key in enumerate(stored.keys):
                self.store(stored_key, at)
        ends = (pages, stored) if self.saves else (stored, pages)
        plan = TransferPlan(job_id=job_id, source=ends[0], target=ends[1], num_blocks=num_blocks)
        return msgspec.structs.replace(plan, **changes)

    def alone(self, job_id, num_blocks):
        """Return a plan whose blocks need no other."""
        plan = self.plan(job_id, num_blocks)
        end = "target" if self.saves else "source"
        stored = msgspec.structs.replace(getattr(plan, end), is_chain=False)
        return msgspec.structs.replace(plan, **{end: stored})

    def run_without_waiting(self, plan):
        self.lane.submit(plan)
        return self.lane.poll()

    def store(self, stored_key, number):
        """Put what page `number` held in the beginning into the tier, behind the lane's back."""
        host = np.frombuffer(self.rig.host.buffer, np.uint8)
        before, content = host.copy(), np.frombuffer(self.expected[number], np.uint8)
        host[: content.size] = content
        self.tier.write([TierBlock(stored_key, None, 0)], None)
        host[:] = before

    def broken_plan(self, job_id):
        plan = self.plan(job_id, 2)
        pages = EnginePages([0, 12])
        if self.saves:
            return msgspec.structs.replace(plan, source=pages)
        return msgspec.structs.replace(plan, target=pages)

    def target(self):
        if self.saves:
            return b"".join(key + value[:-4] for key, value in sorted(self.tier.stored.items()))
        return self.rig.memory.tobytes()

    def target_after(self, plan):
        if self.saves:
            pairs = zip(plan.target.keys, plan.source.page_ids, strict=True)
            return b"".join(key + self.expected[page] for key, page in sorted(pairs))
        before = self.rig.memory.copy()
        for at, page in enumerate(plan.target.page_ids):
            content = np.frombuffer(self.expected[at], np.uint8)
            write_page(self.rig.pages, page, 0, content)
        after = self.rig.memory.tobytes()
        self.rig.memory[:] = before
        return after


class TestSaving(LaneContract):
    @pytest.fixture
    def case(self):
        return Staged(saves=True)


class TestLoading(LaneContract):
    @pytest.fixture
    def case(self):
        return Staged(saves=False)


@pytest.mark.parametrize("saves", [True, False])
def test_a_plan_of_more_blocks_than_slots_goes_part_by_part(saves):
    case = Staged(saves=saves)
    plan = case.plan(1, MANY)
    expected = case.target_after(plan)
    (result,) = case.run(plan)
    assert (result.status, result.num_blocks) == (Status.OK, MANY)
    assert result.num_bytes >= MANY * case.rig.fmt.block_bytes
    assert case.target() == expected


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("bad_block", range(MANY))
def test_the_leading_good_blocks_are_copied_and_no_page_behind_them(saves, bad_block):
    case = Staged(saves=saves, wrap=lambda tier: FaultyTier(tier, {bad_block: Status.CORRUPT}))
    plan = case.plan(1, MANY)
    if not saves:
        good = EnginePages(plan.target.page_ids[:bad_block])
        expected = case.target_after(msgspec.structs.replace(plan, target=good))
    (result,) = case.run(plan)
    assert (result.status, result.num_blocks) == (Status.CORRUPT, bad_block)
    if not saves:
        assert case.target() == expected


@pytest.mark.parametrize("saves", [True, False])
def test_parts_beside_each_other_have_other_slots_and_the_blocks_stay_one_chain(saves):
    case = Staged(saves=saves, wrap=NotingTier)
    plan = case.plan(1, MANY)
    case.run(plan)
    first, second, third = case.wrapped.calls
    places = [{block.slot for block in part} for part in (first, second, third)]
    assert places[0].isdisjoint(places[1])
    assert places[1].isdisjoint(places[2])
    keys = (plan.target if saves else plan.source).keys
    assert [(block.parent, block.key) for block in (*first, *second, *third)] == [
        *zip([None, *keys], keys, strict=False)
    ]


@pytest.mark.parametrize("saves", [True, False])
def test_blocks_that_stand_alone_go_on_behind_one_that_failed(saves):
    case = Staged(saves=saves, wrap=lambda tier: FaultyTier(tier, {1: Status.ERROR}))
    (result,) = case.run(case.alone(1, MANY))
    assert (result.status, result.num_blocks) == (Status.ERROR, MANY - 1)
    assert [at for at, status in enumerate(result.statuses) if status is not Status.OK] == [1]
    assert result.error


def test_a_block_that_stands_alone_and_is_bad_leaves_its_page_as_it_was():
    case = Staged(saves=False, wrap=lambda tier: FaultyTier(tier, {1: Status.CORRUPT}))
    plan = case.alone(1, MANY)
    bad_page = plan.target.page_ids[1]
    case.run(plan)
    for at, page in enumerate(plan.target.page_ids):
        expected = case.expected[bad_page if at == 1 else at]
        assert read_block(case.rig.pages, [page]) == expected


def test_several_plans_share_the_slots():
    case = Staged(saves=False)
    plans = [case.plan(job_id, 3) for job_id in (1, 2, 3)]
    for plan in plans:
        case.lane.submit(plan)
    assert case.lane.drain(30.0)
    assert [(result.job_id, result.num_blocks) for result in case.lane.poll()] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]


def test_a_plan_is_begun_by_submit_and_goes_on_with_each_poll():
    gate = threading.Event()
    case = Staged(saves=False, wrap=lambda tier: SlowTier(NotingTier(tier), gate))
    case.lane.submit(case.plan(1, MANY))
    case.wrapped.entered.acquire()
    assert case.lane.poll() == []
    gate.set()
    results = []
    while not results:
        case.lane.wait(30.0)
        results = case.lane.poll()
    assert results[0].num_blocks == MANY
    assert len(case.wrapped.inner.calls) == 3


def test_a_plan_that_waits_for_slots_is_reported_at_its_deadline():
    gate, clock = threading.Event(), ManualClock(100.0)
    case = Staged(saves=False, wrap=lambda tier: SlowTier(tier, gate), clock=clock)
    for job_id in (1, 2):
        case.lane.submit(case.plan(job_id, 2))
    case.lane.submit(case.plan(3, 2, deadline_s=101.0))
    case.wrapped.entered.acquire()
    clock.advance(1)
    (late,) = case.lane.poll()
    assert (late.job_id, late.status) == (3, Status.TIMEOUT)
    gate.set()
    assert case.lane.drain(30.0)
    assert [result.status for result in case.lane.poll()] == [Status.OK] * 2


def test_what_was_read_in_time_counts_though_nobody_has_polled_until_the_deadline():
    clock = ManualClock(100.0)
    case = Staged(saves=False, clock=clock)
    plan = case.plan(1, 2, deadline_s=101.0)
    expected = case.target_after(plan)
    case.lane.submit(plan)
    assert case.lane._far.drain(30.0)
    clock.advance(1)
    (result,) = case.lane.poll()
    assert (result.status, result.num_blocks) == (Status.OK, 2)
    assert case.target() == expected


def test_of_a_plan_that_is_polled_too_late_the_blocks_that_were_read_count_and_no_part_begins():
    clock = ManualClock(100.0)
    case = Staged(saves=False, wrap=NotingTier, clock=clock)
    case.lane.submit(case.plan(1, MANY))  # the lane's own limit, which the tier does not know
    assert case.lane._far.drain(30.0)
    clock.advance(61)
    (late,) = case.lane.poll()
    assert (late.status, late.num_blocks) == (Status.TIMEOUT, NUM_SLOTS // 2)
    assert case.lane.drain(30.0)
    assert len(case.wrapped.calls) == 1


@pytest.mark.parametrize("saves", [True, False])
def test_a_cancelled_plan_is_reported_by_the_next_poll_and_fills_no_page_afterwards(saves):
    gate = threading.Event()
    case = Staged(saves=saves, wrap=lambda tier: SlowTier(NotingTier(tier), gate))
    before = case.rig.memory.tobytes()
    case.lane.submit(case.plan(1, MANY))
    case.wrapped.entered.acquire()
    case.lane.cancel(1)
    (result,) = case.lane.poll()
    assert (result.job_id, result.status, result.num_blocks) == (1, Status.TIMEOUT, 0)
    case.lane.submit(case.plan(2, 1))
    gate.set()
    assert case.lane.drain(30.0)
    assert [(result.job_id, result.status) for result in case.lane.poll()] == [(2, Status.OK)]
    if not saves:
        page = case.plan(2, 1).target.page_ids[0]
        write_page(case.rig.pages, page, 0, np.frombuffer(case.expected[page], np.uint8))
        assert case.rig.memory.tobytes() == before


def test_what_was_read_for_a_plan_before_it_was_cancelled_fills_no_page():
    case = Staged(saves=False)
    before = case.target()
    case.lane.submit(case.plan(1, 1))
    assert case.lane._far.drain(30.0)
    case.lane.submit(case.plan(2, 1, deadline_s=0.0))  # takes in what was read
    case.lane.cancel(1)
    assert {result.job_id for result in case.lane.poll()} == {1, 2}
    assert case.target() == before


def test_a_cancelled_plan_that_the_tier_has_not_ended_by_its_deadline_shows_that_it_is_stuck():
    gate, clock = threading.Event(), ManualClock(100.0)
    case = Staged(saves=False, wrap=lambda tier: SlowTier(tier, gate), clock=clock)
    case.lane.submit(case.plan(1, 1, deadline_s=101.0))
    case.wrapped.entered.acquire()
    case.lane.cancel(1)
    clock.advance(1)
    assert [result.job_id for result in case.lane.poll()] == [1]
    (refused,) = case.run_without_waiting(case.plan(2, 1))
    assert (refused.job_id, refused.status) == (2, Status.TIMEOUT)
    gate.set()
    assert case.lane.drain(30.0)
    assert [result.status for result in case.run(case.plan(3, 1))] == [Status.OK]


def test_behind_a_part_that_failed_nothing_is_read():
    case = Staged(saves=False, wrap=lambda tier: NotingTier(FaultyTier(tier, {0: Status.CORRUPT})))
    case.run(case.plan(1, MANY))
    assert case.lane.drain(30.0)
    assert len(case.wrapped.calls) == 1


def test_a_tier_that_was_late_once_serves_the_next_plan_although_nobody_has_polled():
    gate, clock = threading.Event(), ManualClock(100.0)
    case = Staged(saves=False, wrap=lambda tier: SlowTier(tier, gate), clock=clock)
    case.run_without_waiting(case.plan(1, 1, deadline_s=101.0))
    case.wrapped.entered.acquire()
    clock.advance(1)
    assert [result.status for result in case.lane.poll()] == [Status.TIMEOUT]
    gate.set()
    assert case.lane._far.drain(30.0)
    assert [result.status for result in case.run(case.plan(2, 1))] == [Status.OK]


def test_a_tier_that_hangs_costs_one_deadline_and_never_writes_a_page_later():
    gate, clock = threading.Event(), ManualClock(100.0)
    case = Staged(saves=False, wrap=lambda tier: SlowTier(tier, gate), clock=clock)
    before = case.target()
    late = case.plan(1, 1, deadline_s=100.0 + 1e-3)
    assert case.run_without_waiting(late) == []
    case.wrapped.entered.acquire()
    clock.advance(1)
    (first,) = case.lane.poll()
    (second,) = case.run_without_waiting(case.plan(2, 1))
    assert [first.status, second.status] == [Status.TIMEOUT, Status.TIMEOUT]
    gate.set()
    assert case.lane.drain(30.0)
    assert case.target() == before
    (third,) = case.run(case.plan(3, 1))
    assert third.status is Status.OK
