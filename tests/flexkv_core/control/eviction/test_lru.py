"""Exact order of the least recently used, and what makes it lazy."""

import random

import pytest

from flexkv_core.control.eviction.lru import LruPolicy
from flexkv_core.testing.policy_contract import (
    CAPACITY_BLOCKS,
    EvictionPolicyContract,
    PolicyItem,
    take_all,
)


class TestLruPolicy(EvictionPolicyContract):
    @pytest.fixture
    def policy(self):
        return LruPolicy(CAPACITY_BLOCKS)


@pytest.fixture
def policy():
    return LruPolicy(CAPACITY_BLOCKS)


def test_the_least_recently_used_goes_first_whatever_the_order_of_adding(policy):
    items = [PolicyItem(str(number), number) for number in range(100)]
    for item in random.Random(1).sample(items, len(items)):
        policy.add(item)
    assert take_all(policy) == items


def test_a_use_after_adding_counts(policy):
    first, second = PolicyItem("first", 1), PolicyItem("second", 2)
    policy.add(first)
    policy.add(second)
    first.use(3)
    assert take_all(policy) == [second, first]


def test_an_old_item_added_late_does_not_become_young(policy):
    """A parent that becomes a leaf again leaves when its own last use says so."""
    young, parent = PolicyItem("young", 5), PolicyItem("parent", 4)
    policy.add(young)
    policy.add(parent)
    assert policy.take() is parent


def test_the_order_is_exact_under_random_uses(policy):
    rng = random.Random(2)
    items = [PolicyItem(str(number), number) for number in range(200)]
    for item in items:
        policy.add(item)
    for clock in range(1000, 3000):
        rng.choice(items).use(clock)
    assert take_all(policy) == sorted(items, key=lambda item: item.last_use)


def test_items_that_are_dropped_leave_no_entries_behind(policy):
    kept = PolicyItem("kept")
    policy.add(kept)
    for number in range(10_000):
        item = PolicyItem(str(number), number)
        policy.add(item)
        policy.discard(item)
    assert len(policy._heap) < 100
    assert take_all(policy) == [kept]


def test_the_order_outlives_many_that_are_dropped(policy):
    items = [PolicyItem(str(number), number) for number in range(400)]
    for item in random.Random(1).sample(items, len(items)):
        policy.add(item)
    for item in items[100:]:
        policy.discard(item)
    assert take_all(policy) == items[:100]


def test_an_item_that_is_dropped_among_many_does_not_cost_a_new_heap(policy):
    items = [PolicyItem(str(number), number) for number in range(400)]
    for item in items:
        policy.add(item)
    PolicyItem.num_looks = 0
    for item in items[:100]:
        policy.discard(item)
    assert PolicyItem.num_looks == 0


def test_an_item_that_is_added_again_and_again_has_one_entry(policy):
    item = PolicyItem("hot")
    for clock in range(1000):
        item.use(clock)
        policy.add(item)
    assert len(policy._heap) == 1
