"""The doubles keep the contracts of what they stand for, and misbehave only as told."""

import copy
import threading

import pytest

from flexkv_core.data.tiers.base import Capabilities, TierBlock
from flexkv_core.data.tiers.memory import SlotMemory
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.plan import Status, TransferResult
from flexkv_core.testing.doubles import (
    CountingTier,
    DelayingLane,
    DictTier,
    FaultyTier,
    ManualClock,
    SlowTier,
    TierWrapper,
)
from flexkv_core.testing.tier_contract import TierCase, TierContract

WAIT_S = 30


def block(number):
    return TierBlock(bytes([number]) * 32, parent=None, slot=0)


class DurableDictTier(DictTier):
    """A dict that is kept for the next tier: what a disk is."""

    capabilities = Capabilities(durable=True)


class DictCase(TierCase):
    """Storage of a `DictTier`, opened through `wrap`."""

    def __init__(self, wrap=lambda tier: tier, make=DictTier):
        self.stored, self.wrap, self.make = {}, wrap, make

    def open(self, memory):
        return self.wrap(self.make(memory, self.stored))

    def corrupt(self, key):
        self.stored[key] = bytes([self.stored[key][0] ^ 1]) + self.stored[key][1:]


def open_gate(tier):
    gate = threading.Event()
    gate.set()
    return SlowTier(tier, gate)


class TestDictTier(TierContract):
    @pytest.fixture
    def case(self):
        return DictCase()


class TestDurableDictTier(TierContract):
    @pytest.fixture
    def case(self):
        return DictCase(make=DurableDictTier)


@pytest.mark.parametrize(
    "wrap",
    [TierWrapper, CountingTier, lambda tier: FaultyTier(tier, {}), open_gate],
    ids=["TierWrapper", "CountingTier", "FaultyTier", "SlowTier"],
)
class TestWrappedTier(TierContract):
    @pytest.fixture
    def case(self, wrap):
        return DictCase(wrap)


@pytest.fixture
def tier():
    return DictTier(SlotMemory(memoryview(bytearray(16)), 2, slot_bytes=8, stride=8))


def test_a_wrapper_has_the_name_and_abilities_of_what_it_wraps():
    inner = DurableDictTier(SlotMemory(memoryview(b""), 0, slot_bytes=8, stride=8))
    wrapper = TierWrapper(inner)
    assert (wrapper.name, wrapper.capabilities) == ("dict", Capabilities(durable=True))


class RenewedTier(DictTier):
    """A dict whose plans go to the generation in which they were submitted."""

    def snapshot(self):
        return copy.copy(self)


def test_the_snapshot_of_a_wrapper_is_the_same_over_that_of_what_it_wraps():
    inner = RenewedTier(SlotMemory(memoryview(bytearray(16)), 2, slot_bytes=8, stride=8))
    counting = CountingTier(inner)
    before = counting.snapshot()
    inner.stored = {}
    before.write([block(1)], None)
    assert (counting.writes, list(inner.stored)) == ([block(1).key], [])


def test_faults_are_counted_over_all_snapshots():
    inner = RenewedTier(SlotMemory(memoryview(bytearray(16)), 2, slot_bytes=8, stride=8))
    faulty = FaultyTier(inner, {1: Status.ERROR})
    statuses = [faulty.snapshot().write([block(number)], None) for number in range(3)]
    assert statuses == [[Status.OK], [Status.ERROR], [Status.OK]]


def test_counting_remembers_keys_in_order(tier):
    counting = CountingTier(tier)
    counting.write([block(1), block(2)], None)
    counting.read([block(2)], None)
    counting.delete([block(1).key])
    assert (counting.writes, counting.reads, counting.deletes) == (
        [block(1).key, block(2).key],
        [block(2).key],
        [block(1).key],
    )


def test_faults_hit_the_operations_they_name_and_these_are_not_done(tier):
    counting = CountingTier(tier)
    faulty = FaultyTier(counting, {1: Status.ERROR, 2: Status.CORRUPT})
    assert faulty.write([block(1), block(2)], None) == [Status.OK, Status.ERROR]
    assert faulty.read([block(1), block(1)], None) == [Status.CORRUPT, Status.OK]
    assert (counting.writes, counting.reads) == ([block(1).key], [block(1).key])


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_slow_tier_waits_at_its_gate_before_it_does_anything(tier, operation):
    slow = SlowTier(CountingTier(tier), threading.Event())
    call = getattr(slow, operation)
    thread = threading.Thread(target=call, args=([block(1)], None))
    thread.start()
    assert slow.entered.acquire(timeout=WAIT_S)
    before = (slow.inner.reads + slow.inner.writes).copy()
    slow.gate.set()
    thread.join(WAIT_S)
    assert (before, slow.inner.reads + slow.inner.writes) == ([], [block(1).key])


def test_a_manual_clock_moves_only_when_told():
    clock = ManualClock(5.0)
    clock.advance(1.5)
    assert clock() == clock() == 6.5


class FakeLane(Lane):
    """Has ended the jobs 1 to 3."""

    def __init__(self, results):
        self._results = results

    def submit(self, plan):
        raise NotImplementedError

    def poll(self):
        results, self._results = self._results, []
        return results

    def drain(self, timeout_s):
        return timeout_s >= 0

    def close(self):
        pass


@pytest.fixture
def delayed():
    results = [
        TransferResult(job_id=job, rank=0, status=Status.OK, num_blocks=1) for job in (1, 2, 3)
    ]
    return DelayingLane(FakeLane(results))


def jobs(lane):
    return [result.job_id for result in lane.poll()]


def test_results_are_held_back_until_they_are_released(delayed):
    assert jobs(delayed) == []
    delayed.release(2)
    assert jobs(delayed) == [2]


def test_results_come_in_the_order_of_their_release(delayed):
    delayed.release(3, 1)
    delayed.release_all()
    assert jobs(delayed) == [3, 1, 2]


def test_closing_releases_everything_once(delayed):
    delayed.close()
    delayed.close()
    assert jobs(delayed) == [1, 2, 3]
