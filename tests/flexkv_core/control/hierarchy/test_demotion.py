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


def test_what_is_used_is_copied_while_it_is_in_host_memory(rig):
    keys = use_new(rig, "chain")
    [plan] = take_plans(rig)
    rig.end(plan)
    assert rig.num_ready(keys, "ssd") == 4


def test_what_host_memory_lacks_is_not_copied(rig):
    use(rig, "request", chain("elsewhere", 4))
    assert take_plans(rig) == []
    assert not rig.tier.has_work


def test_what_the_tier_has_is_not_copied_again(rig):
    keys = use_new(rig, "chain")
    rig.end(*take_plans(rig))
    use(rig, "again", keys)
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


def test_the_oldest_of_very_many_chains_is_given_up(rig, monkeypatch):
    monkeypatch.setattr("flexkv_core.control.hierarchy.demotion._MAX_WAITING", 2)
    for name in range(3):
        use_new(rig, name)
    assert rig.take("demotion_skipped_blocks") == 4
    assert sum(plan.num_blocks for plan in take_plans(rig)) == 8


def test_what_was_not_written_whole_is_not_there(rig):
    keys = use_new(rig, "chain")
    [plan] = take_plans(rig)
    rig.end(plan, status=Status.ERROR, num_blocks=3)
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


def test_a_tier_that_takes_writes_and_never_answers_is_off_until_it_does(rig):
    use_new(rig, "stuck")
    [plan] = take_plans(rig, 0.0)
    use_new(rig, "next")
    assert take_plans(rig, SILENCE_S + 1) == []
    assert rig.tier.is_off
    assert not rig.tier.has_work
    rig.end(plan, SILENCE_S + 2)
    assert not rig.tier.is_off


def test_a_tier_that_is_only_slow_is_not_off(rig):
    for name in range(4):
        use_new(rig, name)
    plans = take_plans(rig, 0.0)
    for number, plan in enumerate(plans, 1):
        rig.end(plan, number * SILENCE_S)
        take_plans(rig, number * SILENCE_S)
    assert not rig.tier.is_off


def test_a_tier_that_had_nothing_to_do_is_not_silent(rig):
    use_new(rig, "first")
    rig.end(*take_plans(rig, 0.0))
    use_new(rig, "second")
    take_plans(rig, 1000.0)
    take_plans(rig, 1000.0 + SILENCE_S)
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


def test_blocks_on_their_way_are_not_admitted_again_when_their_request_grows():
    rig = Rig()
    keys = chain("a", 6)
    assert rig.tier.demoter.admit(keys[:4], 0, 0) == 4
    assert rig.take("admitted_blocks") == 4
    assert rig.tier.demoter.admit(keys, 4, 4) == 6
    assert rig.take("admitted_blocks") == 2
