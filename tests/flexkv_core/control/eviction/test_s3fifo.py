"""What the two queues and the ghosts are for, and what they bring against LRU."""

import random
from collections import OrderedDict

import pytest

from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.eviction.s3fifo import S3FifoPolicy
from flexkv_core.testing.policy_contract import (
    CAPACITY_BLOCKS,
    EvictionPolicyContract,
    PolicyItem,
    take_all,
)


class TestS3FifoPolicy(EvictionPolicyContract):
    @pytest.fixture
    def policy(self):
        return S3FifoPolicy(CAPACITY_BLOCKS)


@pytest.fixture
def policy():
    return S3FifoPolicy(CAPACITY_BLOCKS)


def add(policy, name, *, uses=0, blocks=CAPACITY_BLOCKS // 5):
    """Add an item that is more than the small queue's share, so that the queue is always full."""
    item = PolicyItem(name, num_uses=uses, num_blocks=blocks)
    policy.add(item)
    return item


def evict_next(policy):
    item = policy.take()
    policy.record_eviction(item, item.num_blocks)
    policy.discard(item)
    return item


def test_new_items_leave_in_the_order_they_came(policy):
    items = [add(policy, str(number)) for number in range(5)]
    items[0].num_uses = 1
    assert take_all(policy) == items


def test_an_item_used_twice_outlives_newer_ones(policy):
    used = add(policy, "used", uses=2)
    others = [add(policy, str(number)) for number in range(5)]
    assert take_all(policy) == [*others, used]


def test_what_comes_back_soon_outlives_what_is_new(policy):
    add(policy, "back")
    evict_next(policy)
    back, new = add(policy, "back"), add(policy, "new")
    assert take_all(policy) == [new, back]


def test_what_comes_back_late_is_new(policy):
    """A tier's worth of evicted blocks is remembered, not more."""
    add(policy, "back")
    evict_next(policy)
    add(policy, "many", blocks=CAPACITY_BLOCKS)
    evict_next(policy)
    back, new = add(policy, "back"), add(policy, "new")
    assert take_all(policy) == [back, new]


def test_exactly_a_tier_of_evicted_blocks_is_remembered(policy):
    add(policy, "back", blocks=CAPACITY_BLOCKS // 5)
    add(policy, "many", blocks=CAPACITY_BLOCKS * 4 // 5)
    evict_next(policy)
    evict_next(policy)
    back, new = add(policy, "back"), add(policy, "new")
    assert take_all(policy) == [new, back]


def test_what_was_evicted_first_is_forgotten_first(policy):
    for name in "abcd":
        add(policy, name, blocks=CAPACITY_BLOCKS * 2 // 5)
        evict_next(policy)
    d, c, b, a = (add(policy, name) for name in "dcba")
    assert take_all(policy) == [b, a, d, c]


def test_what_came_back_is_no_longer_among_the_evicted(policy):
    add(policy, "first", blocks=CAPACITY_BLOCKS // 2)
    evict_next(policy)
    first = add(policy, "first", blocks=CAPACITY_BLOCKS // 2)
    add(policy, "second", blocks=CAPACITY_BLOCKS * 3 // 5)
    evict_next(policy)
    second, new = add(policy, "second"), add(policy, "new")
    assert take_all(policy) == [new, first, second]


def test_a_run_that_shrinks_before_it_leaves_is_remembered_once(policy):
    run = add(policy, "back", blocks=400)
    assert policy.take() is run
    policy.record_eviction(run, 300)
    run.num_blocks = 100
    policy.restore(run)
    assert evict_next(policy) is run
    assert policy._num_ghost_blocks == 400
    back, new = add(policy, "back"), add(policy, "new")
    assert take_all(policy) == [new, back]


def test_a_run_that_only_shrank_did_not_come_back(policy):
    run = add(policy, "run", blocks=400)
    policy.take()
    policy.record_eviction(run, 200)
    run.num_blocks = 200
    policy.restore(run)
    policy.add(run)
    other = add(policy, "other")
    assert take_all(policy) == [run, other]


def test_used_items_of_the_main_queue_go_round_once_for_each_use(policy):
    first, second = add(policy, "first", uses=2), add(policy, "second", uses=2)
    add(policy, "new")
    assert repr(policy.take()) == "new"
    first.num_uses = 1
    assert take_all(policy) == [second, first]


def test_an_item_keeps_its_queue_while_it_is_not_a_leaf(policy):
    proven = add(policy, "proven", uses=2)
    assert policy.take() is proven
    policy.add(proven)
    new = add(policy, "new")
    assert take_all(policy) == [new, proven]


def test_what_leaves_the_main_queue_is_not_remembered(policy):
    add(policy, "proven", uses=2)
    evict_next(policy)
    again, new = add(policy, "proven"), add(policy, "new")
    assert take_all(policy) == [again, new]


def test_more_than_three_uses_count_as_three(policy):
    much, enough = add(policy, "much", uses=2), add(policy, "enough", uses=2)
    add(policy, "new")
    policy.take()
    much.num_uses, enough.num_uses = 100, 3
    assert take_all(policy) == [much, enough]


def test_three_uses_count_as_more_than_two(policy):
    thrice, twice = add(policy, "thrice", uses=2), add(policy, "twice", uses=2)
    add(policy, "new")
    policy.take()
    thrice.num_uses, twice.num_uses = 3, 2
    assert take_all(policy) == [twice, thrice]


def test_the_main_queue_gives_way_while_the_small_one_is_within_its_share(policy):
    proven = add(policy, "proven", uses=2)
    add(policy, "gone", blocks=CAPACITY_BLOCKS // 10 + 1)
    evict_next(policy)
    new = add(policy, "new", blocks=CAPACITY_BLOCKS // 10)
    assert take_all(policy) == [proven, new]


def test_a_queued_run_that_grew_counts_as_long_as_it_is(policy):
    proven = add(policy, "proven", uses=2)
    add(policy, "gone", blocks=CAPACITY_BLOCKS // 10 + 1)
    evict_next(policy)
    run = add(policy, "run", blocks=1)
    run.num_blocks = CAPACITY_BLOCKS // 10 + 1
    policy.add(run)
    assert take_all(policy) == [run, proven]


def test_a_queued_run_that_is_added_again_counts_once(policy):
    proven = add(policy, "proven", uses=2)
    add(policy, "gone")
    evict_next(policy)
    run = add(policy, "run", blocks=CAPACITY_BLOCKS // 10)
    policy.add(run)
    assert take_all(policy) == [proven, run]


def test_a_run_that_is_gone_takes_no_share_of_the_small_queue(policy):
    proven = add(policy, "proven", uses=2)
    add(policy, "new")
    evict_next(policy)
    for number in range(10):
        policy.discard(add(policy, f"gone {number}"))
    new = add(policy, "within its share", blocks=CAPACITY_BLOCKS // 10)
    assert take_all(policy) == [proven, new]


def scan_heavy_requests():
    """A few popular names, each between a dozen names that never come again."""
    rng = random.Random(3)
    for number in range(20_000):
        yield f"once {number}" if number % 13 else f"popular {rng.randrange(60)}"


def num_hits(policy_name, capacity):
    policy = create_policy(policy_name, capacity)
    held, hits = {}, 0
    for clock, name in enumerate(scan_heavy_requests()):
        if name in held:
            hits += 1
            held[name].use(clock)
            continue
        if len(held) == capacity:
            del held[repr(evict_next(policy))]
        held[name] = PolicyItem(name, clock)
        policy.add(held[name])
    return hits


def num_lru_hits(capacity):
    held, hits = OrderedDict(), 0
    for name in scan_heavy_requests():
        hits += name in held
        held[name] = None
        held.move_to_end(name)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


def test_one_hit_wonders_do_not_push_out_what_is_popular():
    assert num_hits("s3fifo", 200) > 2 * num_hits("lru", 200)


def test_lru_hits_exactly_what_a_textbook_lru_hits():
    assert num_hits("lru", 200) == num_lru_hits(200)


def test_as_many_blocks_as_the_tier_has_are_remembered(policy):
    names = [str(number) for number in range(5)]
    for name in names:
        add(policy, name)
    for _ in names:
        evict_next(policy)
    back, new = [add(policy, name) for name in names], add(policy, "new")
    assert take_all(policy) == [new, *back]
