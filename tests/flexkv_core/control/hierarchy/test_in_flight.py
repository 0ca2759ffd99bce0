"""Which plans are overdue, and which block of a chain a plan begins with."""

import pytest
from rig import PLAN_BLOCKS, Rig, chain

from flexkv_core.control.hierarchy.in_flight import CopiesInFlight
from flexkv_core.plan import Status

KEYS = chain("a", 3 * PLAN_BLOCKS)


@pytest.fixture
def rig():
    rig = Rig()
    rig.recover()
    rig.put_on_ssd(KEYS)
    return rig


@pytest.fixture
def copies(rig):
    return CopiesInFlight(rig.manager, "ssd", "host", block_bytes=1 << 20, max_blocks=1000)


def listen(copies, until_s):
    """Let the engine step once a second."""
    for now_s in range(until_s + 1):
        copies.listen(float(now_s))


def test_a_plan_is_overdue_two_seconds_after_its_deadline_and_that_is_told_once(copies):
    copies.start("a", KEYS, 4, patience_s=10.0)
    listen(copies, 12)
    assert not copies.has_newly_overdue()
    copies.listen(12.1)
    assert copies.has_newly_overdue()
    assert not copies.has_newly_overdue()


def test_a_pause_of_the_engine_makes_no_plan_overdue(copies):
    copies.start("a", KEYS, 4, patience_s=10.0)
    listen(copies, 5)
    copies.listen(100.0)
    assert not copies.has_newly_overdue()


def test_another_plan_that_becomes_overdue_is_told(copies):
    copies.start("a", KEYS, 4, patience_s=10.0)
    copies.start("a", KEYS, 8, patience_s=20.0)
    listen(copies, 13)
    assert copies.has_newly_overdue()
    for now_s in range(14, 24):
        copies.listen(float(now_s))
    assert copies.has_newly_overdue()


def test_a_bad_block_behind_what_host_memory_has_costs_none_before_it(rig):
    rig.save(KEYS[:5])
    rig.tier.promoter.must_wait("a", KEYS, 0.0, None)
    first, *_ = rig.tier.promoter.take_plans(0.0)
    rig.end(first, status=Status.CORRUPT, num_blocks=2)
    assert rig.num_ready(KEYS, "ssd") == 5 + 2
