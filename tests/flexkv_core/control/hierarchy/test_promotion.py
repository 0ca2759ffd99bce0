"""Who waits for a tier, how long, and for what."""

import math

import pytest
from rig import BLOCK_BYTES, PLAN_BLOCKS, Rig, chain

from flexkv_core.control.hierarchy.rate import Rate
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock

STEP_S = 0.01
"""How often an engine asks again."""


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
def clock():
    return ManualClock()


class BlackHole:
    """A disk that takes every plan and never answers."""

    def __init__(self, rig, clock):
        self.rig, self.clock = rig, clock

    def step(self):
        self.rig.tier.take_orders(self.clock())


class Disk:
    """Reads one block after the other, and begins none past the deadline of its plan."""

    def __init__(self, rig, clock, bytes_per_s):
        self.rig, self.clock = rig, clock
        self.block_s = BLOCK_BYTES / bytes_per_s
        self.free_s = clock()
        self.queue = []

    def step(self):
        for plan in self.rig.tier.take_orders(self.clock()).plans:
            begin_s = max(self.free_s, self.clock())
            num_begun = max(0, math.ceil((plan.deadline_s - begin_s) / self.block_s))
            seconds = min(num_begun, plan.num_blocks) * self.block_s
            self.free_s = begin_s + seconds
            self.queue.append((self.free_s, plan, min(num_begun, plan.num_blocks), seconds))
        while self.queue and self.queue[0][0] <= self.clock():
            _, plan, num_blocks, seconds = self.queue.pop(0)
            status = Status.OK if num_blocks == plan.num_blocks else Status.TIMEOUT
            self.rig.end(plan, self.clock(), status=status, num_blocks=num_blocks, seconds=seconds)


def slow_disk(rig, clock):
    return Disk(rig, clock, 1 << 20)


def wait_of(rig, disk, clock, request, keys, block_compute_s):
    """Ask in every step until a request need not wait; return how long that took."""
    begin_s = clock()
    while rig.tier.promoter.must_wait(request, keys, clock(), block_compute_s):
        disk.step()
        clock.advance(STEP_S)
        assert clock() - begin_s < 100, "waits for ever"
    return clock() - begin_s


@pytest.mark.parametrize("open_disk", [BlackHole, slow_disk], ids=["black hole", "1 MiB/s"])
@pytest.mark.parametrize("block_compute_s", [None, 0.001, 0.1, 10.0])
def test_no_request_waits_past_its_deadline(rig, clock, open_disk, block_compute_s):
    """A step is late by as much as it takes: 10 ms here."""
    disk = open_disk(rig, clock)
    for number in range(20):
        keys = chain(number, 40)
        rig.put_on_ssd(keys)
        patience_s = 0.5 if block_compute_s is None else min(10.0, 20 * block_compute_s)
        waited_s = wait_of(rig, disk, clock, str(number), keys, block_compute_s)
        assert waited_s <= patience_s + STEP_S
        clock.advance(0.5)


def test_a_black_hole_is_soon_not_waited_for(rig, clock):
    disk = BlackHole(rig, clock)
    waits_s = []
    for number in range(20):
        keys = chain(number, 40)
        rig.put_on_ssd(keys)
        waits_s.append(wait_of(rig, disk, clock, str(number), keys, 0.1))
        clock.advance(1.0)
    assert rig.tier.is_off
    assert sum(wait_s > STEP_S for wait_s in waits_s) <= 3


def test_a_disk_that_is_slower_than_computing_is_not_asked(rig, clock):
    disk = slow_disk(rig, clock)
    first, second = chain("first", 40), chain("second", 40)
    rig.put_on_ssd(first)
    rig.put_on_ssd(second)
    assert wait_of(rig, disk, clock, "first", first, 0.5) > 1
    clock.advance(2.0)  # what had begun by the deadline ends
    disk.step()
    rig.counters.drain()
    assert wait_of(rig, disk, clock, "second", second, 0.5) == 0
    assert rig.tier.take_orders(clock()).plans == []
    assert rig.take("promotion_slow_blocks") == 40


def test_a_fast_disk_is_waited_for_until_the_blocks_are_there(rig, clock):
    disk = Disk(rig, clock, 1 << 30)
    keys = chain("fast", 40)
    rig.put_on_ssd(keys)
    assert wait_of(rig, disk, clock, "request", keys, 0.1) < 0.1
    assert rig.num_ready(keys) == rig.num_ready(keys, "ssd") == 40


def test_a_disk_that_was_fast_is_waited_for_again(rig, clock):
    disk = Disk(rig, clock, 1 << 30)
    for name in range(3):
        keys = chain(name, 40)
        rig.put_on_ssd(keys)
        wait_of(rig, disk, clock, str(name), keys, 0.1)
        assert rig.num_ready(keys) == 40


def test_without_time_to_wait_nothing_is_copied():
    rig = Rig(timeout_s=0.0)
    keys = chain("chain", 4)
    rig.put_on_ssd(keys)
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    assert rig.tier.take_orders(0.0).plans == []


def test_a_request_of_the_name_of_one_that_has_ended_waits_for_itself(rig):
    keys = chain("chain", 4)
    rig.put_on_ssd(keys)
    promoter = rig.tier.promoter
    assert promoter.must_wait("request", keys, 0.0, 1.0)
    assert not promoter.must_wait("request", keys, 2.5, 1.0)
    promoter.forget("request")
    assert promoter.must_wait("request", keys, 2.5, 1.0)


def test_a_wait_is_counted_once_when_it_ends(rig):
    keys = chain("chain", 4)
    rig.put_on_ssd(keys)
    for now_s in (0.0, 1.0, 2.0, 3.0):
        rig.tier.promoter.must_wait("request", keys, now_s, 1.0)
    counts = rig.counters.drain()
    assert (counts["promotion_wait_seconds"], counts["promotion_timeouts"]) == (2.0, 1)


def test_what_host_memory_has_is_not_waited_for(rig):
    keys = chain("chain", 20)
    rig.save(keys[:10])
    rig.put_on_ssd(keys)
    waits = [rig.tier.promoter.must_wait("r", keys, now_s, 1.0) for now_s in (0.0, 4.9, 5.0)]
    assert waits == [True, True, False]


class Busy:
    """A tier that reads ten blocks a second, where a request waits for up to 40 of them."""

    def __init__(self):
        self.rig = Rig(host_blocks=1024, timeout_s=4.0)
        self.learn("first")

    def put(self, name, num_blocks):
        keys = chain(name, num_blocks)
        self.rig.put_on_ssd(keys)
        return keys

    def ask(self, keys):
        """Let a request for a chain wait; return the copies that begin for it."""
        self.rig.tier.promoter.must_wait(object(), keys, 0.0, 10.0)
        return self.rig.tier.take_orders(0.0).plans

    def learn(self, name):
        """Measure how fast the tier is."""
        for plan in self.ask(self.put(name, 10)):
            self.rig.end(plan, seconds=plan.num_blocks / 10)
        self.rig.counters.drain()

    def num_started(self, keys):
        return sum(plan.num_blocks for plan in self.ask(keys))


@pytest.fixture
def busy():
    return Busy()


def test_no_more_is_copied_than_comes_in_time(busy):
    assert busy.num_started(busy.put("new", 60)) == 40
    assert busy.rig.take("promotion_slow_blocks") == 20


def test_what_comes_in_time_is_copied_whole(busy):
    assert busy.num_started(busy.put("new", 20)) == 20
    assert busy.rig.take("promotion_slow_blocks") == 0


def test_what_is_on_its_way_for_others_comes_first(busy):
    busy.ask(busy.put("other", 30))
    assert busy.num_started(busy.put("new", 60)) == 10


def test_behind_more_than_comes_in_time_nothing_is_copied(busy):
    busy.rig.tier.promoter._speed = Rate()
    busy.ask(busy.put("as long as no speed is known", 60))
    busy.learn("second")
    assert busy.num_started(busy.put("new", 60)) == 0
    assert busy.rig.take("promotion_slow_blocks") == 60
    assert not busy.rig.tier.is_off


def test_what_is_on_its_way_anyway_comes_for_all_who_wait_for_it(busy):
    keys = busy.put("new", 60)
    busy.rig.save(keys[:5])
    busy.ask(keys[:30])
    busy.ask(busy.put("other", 10))
    assert busy.num_started(keys) == 5


def test_what_the_engine_saves_meanwhile_is_not_in_the_way(busy):
    keys = busy.put("new", 60)
    busy.rig.manager.reserve("saver", keys[:10])
    assert busy.num_started(keys) == 30


def test_a_read_that_fails_says_nothing_of_the_speed(rig):
    for name, status in (("bad", Status.CORRUPT), ("next", Status.OK)):
        keys = chain(name, 4)
        rig.put_on_ssd(keys)
        assert rig.tier.promoter.must_wait(name, keys, 0.0, 0.1)
        for plan in rig.tier.take_orders(0.0).plans:
            num_blocks = plan.num_blocks * (status is Status.OK)
            rig.end(plan, status=status, num_blocks=num_blocks, seconds=100.0)


def test_where_host_memory_is_in_use_nothing_is_copied_and_nothing_is_held():
    rig = Rig(host_blocks=16)
    rig.save(chain("in use", 16))
    lease = rig.manager.match("reader", chain("in use", 16))
    keys = chain("on ssd", 4)
    rig.put_on_ssd(keys)
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    assert rig.tier.take_orders(0.0).plans == []
    rig.manager.release(lease)
    assert rig.manager._claims == {}


def test_a_trial_that_finds_no_room_does_not_put_off_the_next():
    rig = Rig(host_blocks=8)
    for name in range(3):
        keys = chain(name, 2)
        rig.put_on_ssd(keys)
        rig.tier.promoter.must_wait(str(name), keys, 0.0, 1.0)
        [plan] = rig.tier.take_orders(0.0).plans
        rig.end(plan, status=Status.ERROR, num_blocks=0)
    keys = chain("next", 4)
    rig.put_on_ssd(keys)
    rig.save(chain("in use", 8))
    lease = rig.manager.match("reader", chain("in use", 8))
    assert not rig.tier.promoter.must_wait("no room", keys, 31.0, 1.0)
    rig.manager.release(lease)
    assert rig.tier.promoter.must_wait("trial", keys, 31.0, 1.0)


def test_a_plan_may_be_reported_two_seconds_late(rig):
    for name in range(3):
        rig.put_on_ssd(chain(name, 4))
    promoter = rig.tier.promoter
    promoter.must_wait("first", chain(0, 4), 0.0, None)
    for now_s in range(13):
        rig.tier.take_orders(float(now_s))
    assert promoter.must_wait("second", chain(1, 4), 12.0, None)
    assert not rig.tier.is_off
    rig.tier.take_orders(12.01)
    promoter.must_wait("third", chain(2, 4), 12.01, None)
    assert rig.tier.is_off


def test_what_came_by_the_deadline_is_used(rig, clock):
    disk = Disk(rig, clock, 20 << 20)
    keys = chain("half", 100)
    rig.put_on_ssd(keys)
    wait_of(rig, disk, clock, "request", keys, 0.06)
    assert 0 < rig.num_ready(keys) < 100


def test_what_came_of_a_small_copy_by_the_deadline_is_used(rig, clock):
    """20 MiB at 10 MiB/s, while computing takes 1.2 s: once less than 32 MiB were one plan."""
    disk = Disk(rig, clock, 10 << 20)
    keys = chain("small", 20)
    rig.put_on_ssd(keys)
    wait_of(rig, disk, clock, "request", keys, 0.06)
    assert 0 < rig.num_ready(keys) < 20


class TestUnknownSpeed:
    """Nobody knows how long computing takes before the first prefill."""

    def test_a_slow_disk_is_waited_for_half_a_second(self, rig, clock):
        """10 MiB/s, where computing takes 0.8 s: the request waited for 4.6 s."""
        disk = Disk(rig, clock, 10 << 20)
        keys = chain("first", 46)
        rig.put_on_ssd(keys)
        assert wait_of(rig, disk, clock, "request", keys, None) <= 0.5 + STEP_S

    def test_what_it_did_not_wait_for_arrives_for_the_next(self, rig, clock):
        """An engine that waits for nothing, like TensorRT-LLM, has all of it from copies."""
        disk = Disk(rig, clock, 10 << 20)
        keys = chain("first", 46)
        rig.put_on_ssd(keys)
        wait_of(rig, disk, clock, "request", keys, None)
        for _ in range(600):
            clock.advance(STEP_S)
            disk.step()
        assert rig.num_ready(keys) == 46

    def test_a_usual_disk_is_waited_for_until_the_blocks_are_there(self, rig, clock):
        disk = Disk(rig, clock, 1 << 30)
        keys = chain("first", 100)
        rig.put_on_ssd(keys)
        wait_of(rig, disk, clock, "request", keys, None)
        assert rig.num_ready(keys) == 100

    def test_a_request_that_is_not_to_wait_does_not(self, clock):
        rig = Rig(timeout_s=0.0)
        keys = chain("first", 4)
        rig.put_on_ssd(keys)
        assert not rig.tier.promoter.must_wait("request", keys, clock(), None)
        assert rig.tier.take_orders(clock()).plans == []


@pytest.mark.parametrize("status", [Status.BUSY, Status.MISS, Status.TIMEOUT, Status.ERROR])
def test_a_request_whose_read_came_to_nothing_is_asked_once_and_reads_no_more(rig, status):
    keys = chain("request", 4)
    rig.put_on_ssd(keys)
    assert rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    for plan in rig.tier.take_orders(0.0).plans:
        rig.end(plan, status=status, num_blocks=0)
    rig.put_on_ssd(keys)
    assert not rig.tier.promoter.must_wait("request", keys, 0.1, 1.0)
    assert not rig.tier.promoter.must_wait("request", keys, 100.0, 1.0)
    assert rig.tier.take_orders(100.0).plans == []
    assert rig.tier.promoter.must_wait("another", keys, 100.0, 1.0)


def test_what_a_busy_tier_refuses_to_read_stays_there(rig):
    keys = chain("request", 4)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    for plan in rig.tier.take_orders(0.0).plans:
        rig.end(plan, status=Status.BUSY, num_blocks=0)
    assert rig.num_ready(keys, "ssd") == 4
    assert rig.take("ssd_busy_blocks") == 4


def test_fifty_requests_on_one_prefix_read_it_once_and_all_wait(rig):
    keys = chain("shared", 20)
    rig.put_on_ssd(keys)
    requests = [str(number) for number in range(50)]
    assert all(rig.tier.promoter.must_wait(request, keys, 0.0, 1.0) for request in requests)
    for plan in rig.tier.take_orders(0.0).plans:
        rig.end(plan)
    assert not any(rig.tier.promoter.must_wait(request, keys, 0.0, 1.0) for request in requests)
    assert rig.take("promoted_blocks") == 20


def test_fifty_requests_with_ends_of_their_own_read_the_shared_part_once(rig):
    for number in range(50):
        keys = chain("shared", 20) + chain(number, 2)
        rig.put_on_ssd(keys)
        assert rig.tier.promoter.must_wait(str(number), keys, 0.0, 1.0)
    plans = rig.tier.take_orders(0.0).plans
    assert sum(plan.num_blocks for plan in plans) == 20 + 50 * 2


@pytest.mark.parametrize("host_blocks", [1, 2, 3, 16])
def test_a_prompt_that_host_memory_cannot_hold_waits_once_for_what_fits(host_blocks, clock):
    rig = Rig(host_blocks=host_blocks)
    disk = Disk(rig, clock, 1 << 30)
    keys = chain("long", 64)
    rig.put_on_ssd(keys)
    assert wait_of(rig, disk, clock, "request", keys, 1.0) < 1
    assert rig.num_ready(keys) == max(1, host_blocks // 2)


def test_at_most_half_of_host_memory_is_on_its_way():
    rig = Rig(host_blocks=64)
    for number in range(8):
        rig.put_on_ssd(chain(number, 20))
        rig.tier.promoter.must_wait(str(number), chain(number, 20), 0.0, 1.0)
    assert sum(plan.num_blocks for plan in rig.tier.take_orders(0.0).plans) == 32


def test_long_chains_become_usable_part_by_part(rig):
    keys = chain("long", 65)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    plans = rig.tier.take_orders(0.0).plans
    assert [plan.num_blocks for plan in plans] == [9] * 7 + [2]
    rig.end(plans[0])
    assert rig.num_ready(keys) == 9


def test_what_is_read_in_one_call_is_one_plan(rig):
    keys = chain("short", 2)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    assert [plan.num_blocks for plan in rig.tier.take_orders(0.0).plans] == [2]


def test_a_very_long_chain_is_split_into_eight_parts():
    rig = Rig(host_blocks=2048)
    keys = chain("very long", 22 * PLAN_BLOCKS)
    rig.save(keys[: 2 * PLAN_BLOCKS])
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    assert [plan.num_blocks for plan in rig.tier.take_orders(0.0).plans] == [80] * 8


@pytest.mark.parametrize("status", [Status.MISS, Status.CORRUPT, Status.ERROR])
def test_a_block_that_cannot_be_read_is_dropped_with_all_behind_it(rig, status):
    keys = chain("bad", 10)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    first, second, third, *others = rig.tier.take_orders(0.0).plans
    rig.end(first)
    rig.end(second)
    rig.end(third, status=status, num_blocks=0)
    for plan in others:
        rig.end(plan)
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    assert rig.num_ready(keys) == rig.num_ready(keys, "ssd") == 4
    assert set(rig.tier.take_orders(0.0).gone) == set(keys[4:])


def test_a_block_that_was_only_late_stays(rig):
    keys = chain("late", 10)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    for plan in rig.tier.take_orders(0.0).plans:
        rig.end(plan, status=Status.TIMEOUT, num_blocks=1, seconds=5.0)
    assert rig.num_ready(keys, "ssd") == 10


def test_a_request_whose_blocks_are_in_host_memory_does_not_wait(rig):
    keys = chain("host", 10)
    rig.save(keys)
    rig.put_on_ssd(keys)
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)


def test_a_reset_ends_every_wait_and_what_was_read_is_used_by_nobody(rig):
    keys = chain("old", 10)
    rig.put_on_ssd(keys)
    rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    plans = rig.tier.take_orders(0.0).plans
    rig.manager.reset()
    rig.tier.reset()
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
    for plan in plans:
        rig.end(plan, status=Status.CORRUPT, num_blocks=1)
    rig.put_on_ssd(keys)
    assert rig.num_ready(keys) == 0
    assert rig.num_ready(keys, "ssd") == 10


def test_a_tier_that_fails_is_left_alone_and_tried_again(rig):
    for number in range(3):
        keys = chain(number, 4)
        rig.put_on_ssd(keys)
        rig.tier.promoter.must_wait(str(number), keys, 0.0, 1.0)
        assert not rig.tier.is_off
        for plan in rig.tier.take_orders(0.0).plans:
            rig.end(plan, status=Status.ERROR, num_blocks=0)
    keys = chain("next", 4)
    rig.put_on_ssd(keys)
    assert rig.tier.is_off
    assert not rig.tier.promoter.must_wait("off", keys, 1.0, 1.0)
    assert rig.tier.promoter.must_wait("trial", keys, 31.0, 1.0)
    rig.put_on_ssd(chain("other", 4))
    assert not rig.tier.promoter.must_wait("second trial", chain("other", 4), 31.0, 1.0)
    for plan in rig.tier.take_orders(31.0).plans:
        rig.end(plan, 31.0)
    assert not rig.tier.is_off
