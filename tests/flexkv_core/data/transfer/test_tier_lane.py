"""The lane to SSD and remote tiers: threads, deadlines, and what is reported when."""

import copy
import gc
import threading
import time
import weakref
import zlib

import msgspec
import numpy as np
import pytest

from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import (
    CountingTier,
    DictTier,
    FaultyTier,
    ManualClock,
    SlowTier,
    TierWrapper,
)
from flexkv_core.testing.geometry import POISON
from flexkv_core.testing.lane_contract import LaneCase, LaneContract

LARGE = 2 << 20
"""Blocks of this size are given to the tier one by one."""

WAIT_S = 30


def key(number):
    return bytes([number]) * 32


def checksum(payload):
    return zlib.crc32(payload).to_bytes(4, "little")


def slots_of(*slots):
    return HostSlots(np.array(slots, np.int64).tobytes())


def store(numbers, slots, **changes):
    return TransferPlan(
        **{
            "job_id": 1,
            "source": slots_of(*slots),
            "target": StoredBlocks("dict", [key(number) for number in numbers]),
            "num_blocks": len(slots),
            **changes,
        }
    )


def fetch(numbers, slots, **changes):
    plan = store(numbers, slots, **changes)
    return msgspec.structs.replace(plan, source=plan.target, target=plan.source)


@pytest.fixture
def host():
    pool = HostPool.create(8, LARGE)
    yield pool
    pool.close()


@pytest.fixture
def clock():
    return ManualClock(100.0)


@pytest.fixture
def start(host, clock):
    """Start lanes on tiers; whatever happens, they and their tiers come to an end."""
    lanes, gates = [], []

    def start_lane(tier, **options):
        if isinstance(tier, SlowTier):
            gates.append(tier.gate)
        lanes.append(TierLane(0, tier, host.memory, clock=clock, **{"num_threads": 1, **options}))
        return lanes[-1]

    yield start_lane
    for gate in gates:
        gate.set()
    for lane in lanes:
        lane.close()
        lane.drain(WAIT_S)


@pytest.fixture
def tier(host):
    """Blocks 1 to 4 are stored; the slots they came from are poisoned again."""
    tier = DictTier(host.memory)
    for number in range(1, 5):
        host.buffer[:LARGE] = bytes([number]) * LARGE
        tier.write([block(number)], None)
    return tier


def block(number):
    return TierBlock(key(number), parent=None, slot=0)


def run(lane, *plans):
    for plan in plans:
        lane.submit(plan)
    assert lane.drain(WAIT_S)
    return sorted(lane.poll(), key=lambda result: result.job_id)


def test_a_chain_is_written_with_the_parent_of_every_block(host, start):
    seen = []

    class Spy(TierWrapper):
        def write(self, blocks, deadline_s):
            seen.extend((block.key, block.parent, block.slot) for block in blocks)
            return super().write(blocks, deadline_s)

    plan = store([2, 3], [5, 0])
    chain = msgspec.structs.replace(plan, target=StoredBlocks("dict", plan.target.keys, key(1)))
    run(start(Spy(DictTier(host.memory))), chain)
    assert seen == [(key(2), key(1), 5), (key(3), key(2), 0)]


def test_the_first_block_of_a_chain_has_no_parent(host, start):
    parents = []

    class Spy(TierWrapper):
        def read(self, blocks, deadline_s):
            parents.extend(block.parent for block in blocks)
            return super().read(blocks, deadline_s)

    run(start(Spy(DictTier(host.memory))), fetch([1], [0]))
    assert parents == [None]


@pytest.mark.parametrize("status", [Status.MISS, Status.CORRUPT, Status.TIMEOUT, Status.ERROR])
def test_a_result_counts_the_blocks_before_the_first_that_failed(tier, start, status):
    (result,) = run(start(FaultyTier(tier, {2: status})), fetch([1, 2, 3, 4], [0, 1, 2, 3]))
    assert (result.status, result.num_blocks, result.num_bytes) == (status, 2, 2 * LARGE)


def test_an_error_of_the_tier_says_which_block(tier, start):
    (result,) = run(start(FaultyTier(tier, {1: Status.ERROR})), fetch([1, 2], [0, 1]))
    assert result.error == "tier dict failed at block 1 of the plan"


def test_blocks_behind_one_that_failed_are_not_asked_for(tier, start):
    counting = CountingTier(FaultyTier(tier, {1: Status.MISS}))
    run(start(counting), fetch([1, 2, 3, 4], [0, 1, 2, 3]))
    assert counting.reads == [key(1), key(2)]


def test_the_first_failure_counts_even_if_a_later_block_failed_before_it(tier, start):
    gate = threading.Event()

    class FirstBlockLast(TierWrapper):
        def read(self, blocks, _):
            if blocks[0].key == key(1):
                gate.wait(WAIT_S)
                return [Status.CORRUPT]
            gate.set()
            return [Status.MISS]

    lane = start(FirstBlockLast(tier), num_threads=2)
    (result,) = run(lane, fetch([1, 2], [0, 1]))
    assert (result.status, result.num_blocks) == (Status.CORRUPT, 0)


def alone(numbers, slots, **changes):
    """Return a plan that fetches blocks which need no other."""
    plan = fetch(numbers, slots, **changes)
    return msgspec.structs.replace(
        plan, source=msgspec.structs.replace(plan.source, is_chain=False)
    )


def test_blocks_that_stand_alone_are_all_moved_and_each_has_a_status(tier, start):
    counting = CountingTier(FaultyTier(tier, {1: Status.CORRUPT, 2: Status.MISS}))
    (result,) = run(start(counting), alone([1, 2, 3, 4], [0, 1, 2, 3]))
    assert counting.reads == [key(number) for number in range(1, 5)]
    assert result.statuses == (Status.OK, Status.CORRUPT, Status.MISS, Status.OK)
    assert (result.status, result.num_blocks, result.num_bytes) == (Status.CORRUPT, 2, 2 * LARGE)


def test_blocks_that_stand_alone_have_no_parent(tier, start):
    parents = []

    class Spy(TierWrapper):
        def read(self, blocks, deadline_s):
            parents.extend(block.parent for block in blocks)
            return super().read(blocks, deadline_s)

    run(start(Spy(tier)), alone([1, 2], [0, 1]))
    assert parents == [None, None]


def test_a_chain_has_no_status_by_block(tier, start):
    (result,) = run(start(FaultyTier(tier, {1: Status.MISS})), fetch([1, 2], [0, 1]))
    assert result.statuses == ()


def test_small_blocks_go_to_the_tier_together(clock):
    host = HostPool.create(8, LARGE // 2)
    sizes = []

    class Spy(TierWrapper):
        def write(self, blocks, deadline_s):
            sizes.append(len(blocks))
            return super().write(blocks, deadline_s)

    lane = TierLane(0, Spy(DictTier(host.memory)), host.memory, num_threads=1, clock=clock)
    run(lane, store([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]))
    assert sizes == [2, 2, 1]
    lane.close()
    host.close()


def test_the_blocks_of_one_plan_are_moved_by_several_threads(tier, start):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow, num_threads=2)
    lane.submit(fetch([1, 2], [0, 1]))
    assert slow.entered.acquire(timeout=WAIT_S)
    assert slow.entered.acquire(timeout=WAIT_S)


def test_a_read_under_way_is_not_reported_before_it_has_returned(tier, start, clock):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow)
    lane.submit(fetch([1], [0], deadline_s=101.0))
    slow.entered.acquire(timeout=WAIT_S)
    clock.advance(60)
    assert (lane.poll(), lane.drain(0.0)) == ([], False)
    slow.gate.set()
    assert [result.job_id for result in run(lane)] == [1]


def test_an_idle_lane_keeps_no_generation_of_its_tier_alive(tier, start, monkeypatch):
    lane, generations = start(tier), [copy.copy(tier)]
    alive = weakref.ref(generations[0])
    monkeypatch.setattr(tier, "snapshot", generations.pop)
    run(lane, store([1], [0]))
    until_s = time.monotonic() + WAIT_S
    while alive() is not None and time.monotonic() < until_s:
        gc.collect()  # the thread may still be at its last lines
    assert alive() is None


def test_a_plan_that_is_refused_takes_no_snapshot_of_the_tier(tier, start, monkeypatch):
    lane, taken = start(tier), []
    monkeypatch.setattr(tier, "snapshot", lambda: taken.append(1) or tier)
    run(lane, store([1], [99]))
    run(lane, fetch([1], [0], deadline_s=0.0))
    assert not taken
    run(lane, store([1], [0]))
    assert taken


def test_a_call_that_waited_past_its_deadline_does_not_reach_the_tier(tier, start, clock):
    slow = SlowTier(CountingTier(tier), threading.Event())
    lane = start(slow)
    lane.submit(fetch([1], [0]))
    slow.entered.acquire(timeout=WAIT_S)
    lane.submit(fetch([2], [1], job_id=2, deadline_s=101.0))
    clock.advance(1.0)
    slow.gate.set()
    late = run(lane)[1]
    assert (late.status, late.num_blocks) == (Status.TIMEOUT, 0)
    assert slow.inner.reads == [key(1)]


@pytest.fixture
def busy(tier, start):
    """Let a lane be in a call, and have two more plans waiting."""
    slow = SlowTier(CountingTier(tier), threading.Event())
    lane = start(slow)
    lane.submit(fetch([1], [0]))
    slow.entered.acquire(timeout=WAIT_S)
    lane.submit(fetch([2], [1], job_id=2, deadline_s=101.0))
    lane.submit(fetch([3], [2], job_id=3))
    return lane, slow


def test_a_plan_that_waits_past_its_deadline_is_reported_by_the_next_poll(busy, clock):
    lane, _ = busy
    assert lane.poll() == []
    clock.advance(1.0)
    assert [(result.job_id, result.status) for result in lane.poll()] == [(2, Status.TIMEOUT)]


def test_a_cancelled_plan_that_waits_is_reported_and_does_not_reach_the_tier(busy):
    lane, slow = busy
    lane.cancel(3)
    assert [(result.job_id, result.status) for result in lane.poll()] == [(3, Status.TIMEOUT)]
    slow.gate.set()
    assert [result.job_id for result in run(lane)] == [1, 2]
    assert slow.inner.reads == [key(1), key(2)]


def test_a_plan_that_is_cancelled_under_way_ends_with_the_call_that_runs(busy):
    lane, slow = busy
    lane.cancel(1)
    assert lane.poll() == []
    slow.gate.set()
    assert run(lane)[0].status is Status.OK


def test_to_wait_ends_with_the_first_result(busy):
    lane, slow = busy
    lane.wait(0.0)
    assert lane.poll() == []
    slow.gate.set()
    lane.wait(WAIT_S)
    assert lane.poll()[0].job_id == 1


class GatedTier(TierWrapper):
    """Holds back the calls for each block at a gate of its own; the others pass."""

    def __init__(self, inner, numbers):
        super().__init__(inner)
        self.gates = {key(number): threading.Event() for number in numbers}

    def read(self, blocks, deadline_s):
        if gate := self.gates.get(blocks[0].key):
            gate.wait(WAIT_S)
        return super().read(blocks, deadline_s)


def until(is_so):
    end_s = time.monotonic() + WAIT_S
    while not is_so() and time.monotonic() < end_s:
        pass


def test_a_call_wakes_a_thread_that_serves_and_not_one_that_waits_for_results(tier, start):
    """The serving one falls idle after the other has begun to wait."""
    gated = GatedTier(tier, [1, 2])
    lane = start(gated, num_threads=2)
    lane.submit(fetch([1, 2], [0, 1]))
    waiting = threading.Thread(target=lane.wait, args=(WAIT_S,))
    waiting.start()
    until(lambda: lane._changed._waiters)
    gated.gates[key(2)].set()
    until(lambda: len({*lane._changed._waiters, *lane._called._waiters}) == 2)
    lane.submit(fetch([3], [2], job_id=2))
    waiting.join(2)  # far less than the waiting thread would wait
    results = lane.poll()
    gated.gates[key(1)].set()
    assert [result.job_id for result in results] == [2]


def test_the_tier_knows_the_deadline(tier, start):
    deadlines = []

    class Spy(TierWrapper):
        def read(self, blocks, deadline_s):
            deadlines.append(deadline_s)
            return super().read(blocks, deadline_s)

    run(start(Spy(tier)), fetch([1], [0], deadline_s=777.0))
    assert deadlines == [777.0]


def test_a_full_queue_refuses_new_plans(tier, start):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow, max_waiting_calls=1)
    lane.submit(fetch([1], [0]))
    slow.entered.acquire(timeout=WAIT_S)
    lane.submit(fetch([2], [1], job_id=2))
    lane.submit(fetch([3], [2], job_id=3))
    (refused,) = lane.poll()
    assert (refused.job_id, refused.status) == (3, Status.BUSY)


def test_closing_drops_what_waits_and_lets_what_runs_end(tier, start):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow)
    lane.submit(fetch([1], [0]))
    slow.entered.acquire(timeout=WAIT_S)
    lane.submit(fetch([2], [1], job_id=2))
    lane.close()
    assert [(result.job_id, result.status) for result in lane.poll()] == [(2, Status.CLOSED)]
    slow.gate.set()
    assert [(result.job_id, result.status) for result in run(lane)] == [(1, Status.OK)]


def test_a_plan_of_which_half_was_done_when_the_lane_closed_keeps_that_half(tier, start):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow)
    lane.submit(fetch([1, 2, 3], [0, 1, 2]))
    slow.entered.acquire(timeout=WAIT_S)
    lane.close()
    slow.gate.set()
    (result,) = run(lane)
    assert (result.status, result.num_blocks) == (Status.CLOSED, 1)


@pytest.fixture
def broken(tier, monkeypatch):
    """A tier whose first two reads raise; what ends a thread is not said."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    errors = iter([MemoryError, ValueError])

    class Broken(TierWrapper):
        def read(self, blocks, deadline_s):
            if error := next(errors, None):
                raise error
            return super().read(blocks, deadline_s)

    before = threading.enumerate()
    yield Broken(tier)
    for thread in set(threading.enumerate()).difference(before):
        thread.join(WAIT_S)  # what ends one last says so to the hook above


def test_a_tier_that_raises_ends_its_plan_and_the_lane_goes_on(broken, start):
    lane = start(broken)
    results = run(lane, fetch([1], [0]), fetch([2], [1], job_id=2), fetch([3], [2], job_id=3))
    assert [result.status for result in results] == [Status.ERROR, Status.ERROR, Status.OK]


def test_a_lane_that_cannot_replace_its_thread_says_so_and_closes(
    broken, start, monkeypatch, caplog
):
    lane = start(broken)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    (result,) = run(lane, fetch([1], [0]))
    assert result.status is Status.ERROR
    with lane._called:
        assert lane._called.wait_for(lambda: lane._is_closed, WAIT_S)
    assert [refused.status for refused in run(lane, fetch([2], [0]))] == [Status.CLOSED]
    assert "tier.closed: a lane of tier dict has stopped: can't start new thread" in caplog.text


def test_seconds_are_counted_from_when_the_tier_is_asked(tier, start, clock):
    slow = SlowTier(tier, threading.Event())
    lane = start(slow)
    lane.submit(fetch([1], [0]))
    slow.entered.acquire(timeout=WAIT_S)
    clock.advance(3.0)
    slow.gate.set()
    assert [result.seconds for result in run(lane)] == [3.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": StoredBlocks("ssd", [key(1)])}, "this lane serves tier dict, not ssd"),
        ({"target": StoredBlocks("dict", [])}, "the plan has 0 keys for 1 blocks"),
        ({"source": slots_of(8)}, "slot id 8 is not in 0 to 7"),
        ({"source": slots_of(0, 1)}, "the plan has 16 bytes of slot ids for 1 blocks"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_one_sentence(tier, start, changes, sentence):
    (result,) = run(start(tier), store([1], [0], **changes))
    assert (result.status, result.error) == (Status.ERROR, sentence)


class TierLaneCase(LaneCase):
    """Writes to a tier or reads from one; what is outside of the plan is poisoned or absent."""

    block_bytes = 5000  # less than the stride from slot to slot

    def __init__(self, num_threads, *, writes):
        self.host = HostPool.create(8, self.block_bytes)
        self.stored = {}
        self.tier = DictTier(self.host.memory, self.stored)
        self.rank, self.clock_s = 3, time.monotonic()
        self.foreign = EnginePages([0, 1])
        self.lane = TierLane(3, self.tier, self.host.memory, num_threads=num_threads)
        self.writes = writes
        self.make = store if writes else fetch
        self._fill()

    def end(self):
        self.lane.close()
        assert self.lane.drain(WAIT_S)
        self.host.close()

    def _fill(self):
        if self.writes:
            for slot in range(8):
                self._slot(slot)[:] = bytes([slot]) * self.block_bytes
            return
        other = HostPool.create(1, self.block_bytes)
        writer = DictTier(other.memory, self.stored)
        for number in range(8):
            other.buffer[:] = bytes([number]) * len(other.buffer)
            writer.write([block(number)], None)
        other.close()
        self.host.buffer[:] = bytes([POISON]) * len(self.host.buffer)

    def _slot(self, slot):
        start = slot * self.host.slot_stride
        return self.host.buffer[start : start + self.block_bytes]

    def plan(self, job_id, num_blocks):
        numbers = [2 * job_id, 2 * job_id + 1][:num_blocks]
        return self.make(numbers, numbers[::-1], job_id=job_id)

    def broken_plan(self, job_id):
        return self.make([0, 1], [0, 8], job_id=job_id)

    def target(self):
        if self.writes:
            return b"".join(name + payload for name, payload in sorted(self.stored.items()))
        return bytes(self.host.buffer)

    def target_after(self, plan):
        source_then_target = (plan.source, plan.target)
        stored = next(place for place in source_then_target if isinstance(place, StoredBlocks))
        packed = next(place for place in source_then_target if isinstance(place, HostSlots))
        slots = np.frombuffer(packed.slots, np.int64).tolist()
        if self.writes:
            payloads = [bytes(self._slot(slot)) for slot in slots]
            pairs = zip(stored.keys, payloads, strict=True)
            return b"".join(name + payload + checksum(payload) for name, payload in sorted(pairs))
        region = bytearray(self.host.buffer)
        for name, slot in zip(stored.keys, slots, strict=True):
            start = slot * self.host.slot_stride
            region[start : start + self.block_bytes] = name[:1] * self.block_bytes
        return bytes(region)


@pytest.fixture(params=[1, 4])
def num_threads(request):
    return request.param


class TestTierLaneWriting(LaneContract):
    @pytest.fixture
    def case(self, num_threads):
        case = TierLaneCase(num_threads, writes=True)
        yield case
        case.end()


class TestTierLaneReading(LaneContract):
    @pytest.fixture
    def case(self, num_threads):
        case = TierLaneCase(num_threads, writes=False)
        yield case
        case.end()
