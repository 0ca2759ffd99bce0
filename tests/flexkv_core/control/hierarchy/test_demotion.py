"""What is copied to a tier, when, and what happens if the tier fails."""

import pytest
from rig import PLAN_BLOCKS, Rig, chain

from flexkv_core.plan import Status

SILENCE_S = 60.0


@pytest.fixture
def rig():
    rig = Rig()
    rig.recover()
    return rig


def use(rig, request, keys):
    """Let a request use a chain, and offer what host memory has of it."""
    rig.manager.note_use(keys)
    num_wanted = rig.tier.demoter.admit(keys, 0, 0)
    rig.tier.demoter.offer(request, keys, num_wanted)


def use_new(rig, name, num_blocks=4):
    """Let a request use a chain that it has just saved."""
    keys = chain(name, num_blocks)
    rig.save(keys)
    use(rig, str(name), keys)
    return keys


def take_plans(rig, now_s=0.0):
    return rig.tier.take_orders(now_s).plans


def listen(rig, until_s):
    """Let the engine step once a second."""
    for now_s in range(int(until_s)):
        assert take_plans(rig, now_s) == []


def test_what_is_used_is_copied_while_it_is_in_host_memory(rig):
    keys = use_new(rig, "chain")
    [plan] = take_plans(rig)
    rig.end(plan)
    assert rig.num_ready(keys, "ssd") == 4


def test_what_host_memory_lacks_is_not_copied(rig):
    use(rig, "request", chain("elsewhere", 4))
    assert not rig.tier.has_work
    assert take_plans(rig) == []


def test_of_a_chain_that_host_memory_has_a_part_of_the_rest_is_neither_copied_nor_missed(rig):
    keys = chain("part", 4)
    rig.save(keys[:2])
    use(rig, "request", keys)
    [plan] = take_plans(rig)
    rig.end(plan)
    assert plan.num_blocks == 2
    assert rig.take("demotion_skipped_blocks") == 0


def test_only_what_is_wanted_is_copied(rig):
    keys = chain("chain", 4)
    rig.save(keys)
    rig.tier.demoter.offer("request", keys, 3)
    [plan] = take_plans(rig)
    assert plan.num_blocks == 3


def test_what_the_tier_has_is_not_copied_again(rig):
    keys = use_new(rig, "chain")
    rig.end(*take_plans(rig))
    use(rig, "again", keys)
    assert not rig.tier.has_work
    assert take_plans(rig) == []


def test_what_is_on_its_way_is_not_copied_again(rig):
    keys = use_new(rig, "chain")
    take_plans(rig)
    use(rig, "again", keys)
    assert take_plans(rig) == []


def test_nothing_is_copied_before_the_tier_has_told_what_it_has():
    rig = Rig()
    use_new(rig, "chain")
    assert take_plans(rig) == []
    assert rig.tier.has_work
    rig.recover()
    assert len(take_plans(rig)) == 1


def test_a_quarter_of_host_memory_is_on_its_way_and_the_rest_waits(rig):
    for name in range(3):
        use_new(rig, name, PLAN_BLOCKS)
    plans = take_plans(rig)
    assert sum(plan.num_blocks for plan in plans) == 64
    assert rig.tier.has_work
    for plan in plans:
        rig.end(plan)
    assert sum(plan.num_blocks for plan in take_plans(rig)) == 32
    assert not rig.tier.has_work


def test_the_smallest_host_memory_is_copied_too():
    rig = Rig(host_blocks=2)
    rig.recover()
    keys = use_new(rig, "chain", 2)
    for _ in keys:
        rig.end(*take_plans(rig))
    assert rig.num_ready(keys, "ssd") == 2


def test_what_the_tier_got_while_a_chain_waited_is_not_counted_off(rig):
    keys = chain("chain", 6)
    rig.save(keys)
    use(rig, "waits", keys[:4])
    rig.put_on_ssd(keys)
    assert take_plans(rig) == []
    assert rig.take("demotion_skipped_blocks") == 0


def test_of_a_chain_longer_than_that_the_rest_waits(rig):
    keys = use_new(rig, "long", 100)
    for num_blocks in (64, 36):
        plans = take_plans(rig)
        assert sum(plan.num_blocks for plan in plans) == num_blocks
        for plan in plans:
            rig.end(plan)
    assert rig.num_ready(keys, "ssd") == 100
    assert rig.take("demotion_skipped_blocks") == 0


def test_the_oldest_of_very_many_chains_is_given_up(rig, monkeypatch):
    monkeypatch.setattr("flexkv_core.control.hierarchy.demotion._MAX_WAITING", 2)
    for name in range(3):
        use_new(rig, name)
    assert rig.take("demotion_skipped_blocks") == 4
    assert sum(plan.num_blocks for plan in take_plans(rig)) == 8


def test_blocks_that_wait_to_be_copied_are_counted_as_skipped_once_the_tier_is_off(rig):
    use_new(rig, "stuck")
    take_plans(rig)
    listen(rig, SILENCE_S + 1)
    keys = chain("waits", 6)
    rig.put_on_ssd(keys[:2])
    rig.save(keys)
    use(rig, "waits", keys)
    rig.take("demotion_skipped_blocks")
    take_plans(rig, SILENCE_S + 1)
    assert rig.take("demotion_skipped_blocks") == 4


def test_blocks_are_admitted_once_however_often_their_request_grows(rig):
    demoter, keys = rig.tier.demoter, chain("grows", 6)
    rig.put_on_ssd(keys[:1])
    num_wanted = demoter.admit(keys[:4], 0, 0)
    assert rig.take("admitted_blocks") == 3
    assert demoter.admit(keys, 4, num_wanted) == 6
    assert rig.take("admitted_blocks") == 2


def test_blocks_that_are_not_worth_writing_are_counted(monkeypatch):
    monkeypatch.setattr("flexkv_core.control.hierarchy.admission._FIRST_TRUST", 0)
    rig = Rig(ssd_blocks=8)
    rig.recover()
    rig.put_on_ssd(chain("there", 6))
    keys = chain("new", 5)
    num_wanted = rig.tier.demoter.admit(keys[:4], 0, 0)
    assert (num_wanted, rig.take("declined_blocks")) == (2, 2)
    rig.put_on_ssd(chain("too", 2))
    assert rig.tier.demoter.admit(keys, 4, num_wanted) == 2
    assert rig.take("declined_blocks") == 1


def test_what_was_not_written_whole_is_not_there(rig):
    keys = use_new(rig, "chain")
    [plan] = take_plans(rig)
    rig.end(plan, status=Status.ERROR, num_blocks=3)
    counts = rig.counters.drain()
    assert (counts["demoted_blocks"], counts["demotion_skipped_blocks"]) == (3, 1)
    assert rig.num_ready(keys, "ssd") == 3
    assert rig.tier.take_orders(0.0).gone == keys[3:]


def test_a_tier_that_fails_is_left_alone_and_tried_again(rig):
    for name in range(3):
        use_new(rig, name)
        [plan] = take_plans(rig)
        rig.end(plan, status=Status.ERROR, num_blocks=0)
    assert rig.tier.is_off
    use_new(rig, "off")
    assert take_plans(rig, 1.0) == []
    assert not rig.tier.has_work
    use_new(rig, "trial")
    [plan] = take_plans(rig, 31.0)
    rig.end(plan, 31.0)
    assert not rig.tier.is_off


def test_a_trial_that_finds_nothing_to_copy_does_not_put_off_the_next(rig):
    for name in range(3):
        use_new(rig, name)
        [plan] = take_plans(rig)
        rig.end(plan, status=Status.ERROR, num_blocks=0)
    keys = use_new(rig, "left")
    rig.manager.drop_from(keys[:1], tier="host")
    assert take_plans(rig, 31.0) == []
    use_new(rig, "trial")
    assert len(take_plans(rig, 31.0)) == 1


def test_a_tier_that_takes_writes_and_never_answers_is_off_until_it_does(rig):
    use_new(rig, "stuck")
    [plan] = take_plans(rig, 0.0)
    listen(rig, SILENCE_S + 2)
    use_new(rig, "next")
    assert take_plans(rig, SILENCE_S + 2) == []
    assert rig.tier.is_off
    assert not rig.tier.has_work
    rig.end(plan, SILENCE_S + 3)
    assert not rig.tier.is_off


def test_a_tier_that_is_only_slow_is_not_off(rig):
    for name in range(4):
        use_new(rig, name)
    plans = take_plans(rig, 0.0)
    for plan in plans:
        listen(rig, SILENCE_S)
        rig.end(plan)
    assert not rig.tier.is_off


def test_a_tier_that_had_nothing_to_do_is_not_silent(rig):
    use_new(rig, "first")
    rig.end(*take_plans(rig, 0.0))
    listen(rig, 2 * SILENCE_S)
    use_new(rig, "second")
    assert take_plans(rig, 2 * SILENCE_S)
    take_plans(rig, 2 * SILENCE_S + 1)
    assert not rig.tier.is_off


def test_a_reset_forgets_what_waits(rig):
    use_new(rig, "old")
    rig.manager.reset()
    rig.tier.reset()
    assert not rig.tier.demoter.has_work
    assert take_plans(rig) == []


def test_what_was_on_its_way_at_a_reset_is_not_there_afterwards(rig):
    keys = use_new(rig, "old")
    [plan] = take_plans(rig)
    rig.manager.reset()
    rig.tier.reset()
    rig.end(plan)
    assert rig.num_ready(keys, "ssd") == 0


def test_what_host_memory_serves_is_used_in_the_tier_as_well(rig):
    """Or the most popular chain would leave it, for nobody reads it there."""
    rig = Rig(ssd_blocks=8)
    rig.recover()
    popular, other = use_new(rig, "popular"), use_new(rig, "other")
    for plan in take_plans(rig):
        rig.end(plan)
    use(rig, "again", popular)
    rig.put_on_ssd(chain("third", 4))
    assert rig.num_ready(popular, "ssd") == 4
    assert rig.num_ready(other, "ssd") == 0


class TestBusy:
    @pytest.fixture
    def refused(self, rig):
        """A chain that a busy tier has refused, while it has taken another."""
        taken, refused = use_new(rig, "taken"), use_new(rig, "refused")
        self.first, plan = take_plans(rig)
        rig.end(plan, status=Status.BUSY, num_blocks=0)
        assert rig.num_ready(taken) == 4
        return refused

    def test_it_is_offered_again(self, rig, refused):
        rig.end(self.first)
        [plan] = take_plans(rig)
        rig.end(plan)
        assert rig.num_ready(refused, "ssd") == 4
        assert rig.take("demotion_skipped_blocks") == 0

    def test_it_counts_by_itself(self, rig, refused):
        counts = rig.counters.drain()
        assert (counts["ssd_busy_blocks"], "demotion_skipped_blocks" in counts) == (4, False)

    def test_it_is_forgotten_by_a_reset(self, rig):
        use_new(rig, "old")
        [plan] = take_plans(rig)
        rig.manager.reset()
        rig.tier.reset()
        rig.end(plan, status=Status.BUSY, num_blocks=0)
        assert not rig.tier.demoter.has_work

    def test_a_longer_part_of_the_chain_that_waits_is_what_waits(self, rig):
        keys = chain("grows", 8)
        rig.save(keys[:4])
        use(rig, "request", keys[:4])
        [plan] = take_plans(rig)
        rig.save(keys)
        rig.tier.demoter.offer("request", keys, 8)
        rig.end(plan, status=Status.BUSY, num_blocks=0)
        assert sum(plan.num_blocks for plan in take_plans(rig)) == 8

    def test_what_followed_a_part_that_was_refused_is_offered_again_with_it(self, rig):
        """It was taken, and leaves with the part before it; what waits is not given up for that."""
        keys = use_new(rig, "long", PLAN_BLOCKS + 5)
        first, second = take_plans(rig)
        rig.end(first, status=Status.BUSY, num_blocks=0)
        assert take_plans(rig) == []
        rig.end(second)
        for _ in range(2):
            for plan in take_plans(rig):
                rig.end(plan)
        assert rig.num_ready(keys, "ssd") == PLAN_BLOCKS + 5
        assert rig.take("demotion_skipped_blocks") == 0

    def test_where_less_than_a_plan_may_be_in_flight_it_does_not_become_more(self, rig):
        small = Rig(host_blocks=4 * 10)
        small.recover()
        use_new(small, "refused", 8)
        [plan] = take_plans(small)
        small.end(plan, status=Status.BUSY, num_blocks=0)
        assert small.tier.demoter._in_flight.num_more == 10

    def test_the_room_that_it_had_comes_back_as_copies_end_well(self, rig):
        """64 blocks may be in flight, and a plan's worth where all was refused."""
        for number in range(3):
            use_new(rig, number, PLAN_BLOCKS)
        for plan in take_plans(rig):
            rig.end(plan, status=Status.BUSY, num_blocks=0)
        assert rig.tier.demoter._in_flight.num_more == PLAN_BLOCKS
        [plan] = take_plans(rig)
        rig.end(plan)
        assert rig.tier.demoter._in_flight.num_more == PLAN_BLOCKS + 1
