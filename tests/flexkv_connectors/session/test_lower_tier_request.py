"""A request follows its blocks to a tier below host memory."""

import pytest

from flexkv_connectors.session.lower_tier_request import LowerTierRequest
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.metrics import Counters

KEYS = [bytes([number]) * 32 for number in range(8)]


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def manager(counters):
    """Two tiers with room for eight blocks each."""
    specs = [TierSpec("host", 8), TierSpec("ssd", 8, addressed_by="key")]
    return CacheManager(specs, recorder=counters)


@pytest.fixture
def tier(manager, counters):
    """The lower one."""
    return LowerTier(
        manager, "ssd", owners=(0,), block_bytes=1 << 20, timeout_s=1.0, recorder=counters
    )


def write(manager, keys):
    """Let host memory have a chain."""
    assert manager.restore(keys, tier="host").num_known == len(keys)


def test_a_block_that_is_on_its_way_is_not_admitted_again(tier, counters):
    request = LowerTierRequest(tier, "request", KEYS[:3], 0)
    request.admit(KEYS[:4])
    request.admit(KEYS[:5])
    assert counters.drain()["admitted_blocks"] == 5


def test_blocks_that_were_decided_about_are_not_decided_about_again(tier, counters):
    request = LowerTierRequest(tier, "request", KEYS[:3], 0)
    counters.drain()
    request.admit(KEYS[:3])
    assert counters.drain() == {}


def test_a_request_that_has_ended_is_forgotten(tier):
    request = LowerTierRequest(tier, "request", KEYS, 0)
    request.fetch(KEYS, 0.0, None)
    request.end()
    assert not tier.promoter._waits


def test_blocks_that_are_not_for_the_tier_never_get_there(manager, tier, counters):
    write(manager, KEYS)
    request = LowerTierRequest(tier, "request", KEYS[:3], 0, max_blocks=2)
    request.admit(KEYS)
    request.demote(KEYS)
    assert counters.drain()["admitted_blocks"] == 2
    assert sum(plan.num_blocks for plan in tier.demoter.take_plans(0.0)) == 2


def test_blocks_that_are_not_for_the_tier_are_not_fetched_from_it(manager, tier):
    manager.restore(KEYS, tier="ssd")
    request = LowerTierRequest(tier, "request", KEYS, 0, max_blocks=2)
    assert request.fetch(KEYS, 0.0, None)
    assert sum(plan.num_blocks for plan in tier.promoter.take_plans(0.0)) == 2
