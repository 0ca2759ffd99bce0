"""A tier below host memory: recovery, capacity, resets."""

import pytest
from rig import Rig, chain

from flexkv_core.plan import Status, TierReport


def take_orders(rig):
    return rig.tier.take_orders(0.0)


def test_what_all_owners_have_found_is_there():
    rig = Rig(owners=(0, 2))
    keys = chain("found", 4)
    rig.recover(keys, rank=0)
    rig.recover(keys[:3], rank=2)
    take_orders(rig)
    assert rig.num_ready(keys, "ssd") == 3


def test_what_is_of_no_use_is_forgotten_by_the_workers():
    rig = Rig()
    first, second = chain("first", 4), chain("second", 4)
    rig.recover(first, first_block=1, is_recovered=False)
    rig.recover(second, first_block=2)
    assert set(take_orders(rig).gone) == {*first[1:], *second[2:]}


def test_what_is_found_in_several_reports_is_counted_once():
    rig = Rig()
    keys = chain("found", 6)
    rig.recover(keys[:4], is_recovered=False)
    take_orders(rig)
    rig.recover(keys, first_block=4)
    take_orders(rig)
    assert rig.num_ready(keys, "ssd") == rig.take("restored_blocks") == 6


def test_what_was_found_behind_a_block_that_has_left_is_of_no_use(monkeypatch):
    monkeypatch.setattr("flexkv_core.control.hierarchy.restorer._BLOCKS_A_STEP", 1)
    rig = Rig()
    trunk, branches = chain("trunk", 4), (chain("one", 2), chain("two", 2))
    rig.recover(trunk + branches[0], is_recovered=False)
    rig.recover(trunk + branches[1], first_block=4)
    take_orders(rig)
    rig.manager.drop_from(trunk[:2], tier="ssd")
    while rig.tier.has_work:
        take_orders(rig)
    assert rig.manager.num_used_blocks("ssd") == rig.num_ready(trunk, "ssd") == 1


def report(rig, rank, capacity_blocks, **counts):
    rig.tier.handle_report(
        TierReport(tier="ssd", rank=rank, capacity_blocks=capacity_blocks, counts=counts)
    )


def test_counts_of_the_owners_add_up_and_gauges_do_not():
    rig = Rig()
    for _ in range(2):
        report(rig, 0, 8, ssd_read_bytes=5, ssd_used_blocks=7)
    counts = rig.counters.drain()
    assert (counts["ssd_read_bytes"], counts["ssd_used_blocks"]) == (10, 7)


def test_what_a_rank_has_room_for_that_owns_nothing_does_not_matter():
    rig = Rig()
    report(rig, 0, 8)
    report(rig, 1, 2)
    assert rig.tier.capacity_blocks == 8


def test_requests_do_not_wait_for_recovery():
    rig = Rig()
    keys = chain("found", 4)
    rig.recover(keys, is_recovered=False)
    take_orders(rig)
    assert not rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)


def test_much_is_restored_in_many_steps():
    rig = Rig(ssd_blocks=10_000)
    for number in range(400):
        rig.recover(chain(number, 20), is_recovered=number == 399)
    num_steps = 0
    while rig.tier.has_work:
        before = rig.manager.num_used_blocks("ssd")
        take_orders(rig)
        assert rig.manager.num_used_blocks("ssd") - before <= 4096 + 20
        num_steps += 1
    assert num_steps > 1
    assert rig.manager.num_used_blocks("ssd") == 400 * 20


def test_what_does_not_fit_is_forgotten_by_the_workers():
    rig = Rig(ssd_blocks=8)
    first, second = chain("first", 8), chain("second", 8)
    rig.recover(first, is_recovered=False)
    rig.recover(second)
    gone = []
    while rig.tier.has_work:
        gone += take_orders(rig).gone
    num_kept = rig.num_ready(first, "ssd") + rig.num_ready(second, "ssd")
    assert num_kept == 8
    assert len(set(gone)) == len(gone) == 8


def test_the_end_of_a_chain_that_is_too_long_is_forgotten_by_the_workers():
    rig = Rig(ssd_blocks=8)
    keys = chain("long", 12)
    rig.recover(keys)
    assert set(take_orders(rig).gone) == set(keys[8:])
    assert rig.num_ready(keys, "ssd") == 8


def test_it_holds_what_every_owner_has_room_for():
    rig = Rig(owners=(0, 1), ssd_blocks=100)
    keys = chain("held", 50)
    rig.recover(rank=0)
    rig.recover(rank=1)
    rig.put_on_ssd(keys)
    rig.recover(rank=1, capacity_blocks=20)
    assert set(take_orders(rig).gone) == set(keys[20:])
    assert rig.tier.capacity_blocks == 20


def test_a_tier_that_lost_all_room_is_used_again_when_it_has_some():
    rig = Rig()
    keys = chain("kept", 4)
    rig.recover(capacity_blocks=0)
    rig.save(keys)
    rig.tier.demoter.offer("request", keys, 4)
    assert take_orders(rig).plans == []
    rig.recover(capacity_blocks=8)
    take_orders(rig)
    rig.tier.demoter.offer("request", keys, 4)
    [plan] = take_orders(rig).plans
    assert plan.num_blocks == 4


class TestWorkThatCannotProceed:
    """An idle engine does not step for it: it would do so until a model is hashed."""

    @pytest.fixture
    def rig(self):
        """A tier whose owner has said that it does not know yet what its blocks are of."""
        rig = Rig()
        assert rig.tier.can_proceed, "it has said nothing yet"
        rig.recover(is_recovered=False)
        return rig

    def test_while_nobody_knows_what_the_model_is_there_is_nothing_to_step_for(self, rig):
        assert rig.tier.has_work
        assert not rig.tier.can_proceed

    def test_what_waits_to_be_copied_waits_for_that(self, rig):
        rig.save(chain("waits", 4))
        rig.tier.demoter.offer("request", chain("waits", 4), 4)
        assert not rig.tier.can_proceed
        rig.recover()
        assert rig.tier.can_proceed
        for plan in take_orders(rig).plans:
            rig.end(plan)
        assert not rig.tier.can_proceed

    def test_while_blocks_are_being_found_an_idle_engine_steps(self, rig):
        rig.recover(chain("found", 4), is_recovered=False)
        assert rig.tier.can_proceed
        rig.recover(is_recovered=False)
        assert rig.tier.can_proceed
        rig.recover()
        assert rig.tier.can_proceed
        take_orders(rig)
        assert not rig.tier.can_proceed

    def test_one_of_two_that_finds_blocks_is_heard_out(self):
        rig = Rig(owners=(0, 1))
        rig.recover(rank=0, is_recovered=False)
        rig.recover(chain("found", 4), rank=1, is_recovered=False)
        assert rig.tier.can_proceed
        rig.recover(rank=1)
        assert not rig.tier.can_proceed


class TestReset:
    @pytest.fixture
    def rig(self):
        rig = Rig()
        rig.recover(is_recovered=False)
        return rig

    def reset(self, rig):
        """Begin a generation, and return its name."""
        rig.manager.reset()
        rig.tier.reset()
        return take_orders(rig).generation

    def test_it_is_ordered_once_under_a_new_name(self, rig):
        first, second = self.reset(rig), self.reset(rig)
        assert first != second
        assert "" not in (first, second)
        assert take_orders(rig).generation == ""

    def test_of_two_in_one_step_the_last_is_ordered(self, rig):
        rig.tier.reset()
        rig.recover(generation=self.reset(rig))
        assert not rig.tier.has_work

    def test_what_was_found_before_is_not_taken_in_after(self, rig):
        keys = chain("old", 4)
        rig.recover(keys, is_recovered=False)
        name = self.reset(rig)
        rig.recover(chain("late", 4))
        rig.recover(generation=name)
        take_orders(rig)
        assert rig.manager.num_used_blocks("ssd") == 0

    @pytest.mark.parametrize("is_ready", [True, False])
    def test_nothing_is_stored_before_every_owner_has_begun_it(self, is_ready):
        """An owner may not even have opened the tier: then it cannot carry out a plan."""
        rig = Rig(owners=(0, 2))
        for rank in rig.owners:
            rig.recover(rank=rank)
        first, name = self.reset(rig), self.reset(rig)
        keys = chain("new", 4)
        rig.recover(rank=0, generation=name)
        rig.recover(rank=2, generation=name if is_ready else first)
        rig.save(keys)
        rig.tier.demoter.offer("saver", keys, 4)
        assert sum(plan.num_blocks for plan in take_orders(rig).plans) == 4 * is_ready
        assert rig.tier.has_work is not is_ready

    def test_an_idle_engine_steps_until_every_owner_has_heard_of_it(self, rig):
        rig.manager.reset()
        rig.tier.reset()
        assert rig.tier.can_proceed
        name = take_orders(rig).generation
        assert rig.tier.can_proceed
        rig.recover(generation=name, is_recovered=False)
        assert not rig.tier.can_proceed

    def test_an_owner_that_has_not_opened_the_tier_yet_is_waited_for(self, rig):
        name = self.reset(rig)
        rig.recover(generation=name, is_recovered=False)
        assert rig.tier.has_work
        rig.recover(generation=name)
        assert not rig.tier.has_work

    def test_room_is_known_before_an_owner_has_begun_it(self, rig):
        self.reset(rig)
        rig.recover(capacity_blocks=7)
        assert rig.tier.capacity_blocks == 7

    def test_what_leaves_the_old_generation_is_not_deleted_from_the_new(self, rig):
        keys = chain("old", 4)
        rig.put_on_ssd(keys)
        rig.manager.drop_from(keys[:1], tier="ssd")
        rig.manager.reset()
        rig.tier.reset()
        assert take_orders(rig).gone == []

    def test_a_read_under_way_keeps_its_keys_out_of_the_new_generation_until_it_has_ended(self):
        """Its worker forgets them when it has: what is new must not be forgotten with them."""
        rig = Rig()
        rig.recover()
        keys = chain("old", 4)
        rig.put_on_ssd(keys)
        rig.tier.promoter.must_wait("request", keys, 0.0, 1.0)
        reads = take_orders(rig).plans
        rig.recover(generation=self.reset(rig))
        for read in reads:
            rig.end(read, status=Status.MISS, num_blocks=0)
        rig.save(keys)
        rig.tier.demoter.offer("saver", keys, 4)
        orders = take_orders(rig)
        assert set(orders.gone) == set(keys)
        assert sum(plan.num_blocks for plan in orders.plans) == 4
        assert take_orders(rig).gone == []
