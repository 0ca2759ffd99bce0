"""What is wanted with room, under churn and when the load changes; what is remembered."""

import hashlib
import itertools
import random
import tracemalloc

import pytest

from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.admission import Admission, _SeenKeys, _Shadow

CAPACITY = 2000
CHAIN = 10

numbers = itertools.count()


def new_chain(num_blocks=CHAIN):
    """Make keys that nobody has seen."""
    return [BlockKey(hashlib.sha256(b"%d" % next(numbers)).digest()) for _ in range(num_blocks)]


def churn(admission, num_blocks):
    """Use chains once each; return how many of their blocks were wanted."""
    return sum(
        admission.touch(new_chain(), num_held=0, num_free=0) for _ in range(num_blocks // CHAIN)
    )


def use_twice(admission, num_blocks, num_between):
    """Use chains twice each, `num_between` other blocks later."""
    chains = [new_chain() for _ in range((num_blocks + num_between) // CHAIN)]
    for chain, earlier in zip(chains, [None] * (num_between // CHAIN) + chains, strict=False):
        admission.touch(chain, num_held=0, num_free=0)
        if earlier:
            admission.touch(earlier, num_held=0, num_free=0)


def wants_all(admission):
    """Whether a chain that nobody has seen is wanted without room for it."""
    return admission.touch(new_chain(), num_held=0, num_free=0) == CHAIN


@pytest.fixture
def admission():
    """Return one that has seen nothing come back."""
    admission = Admission(CAPACITY)
    churn(admission, 2 * CAPACITY)
    return admission


def test_with_room_everything_is_wanted_at_once(admission):
    assert admission.touch(new_chain(8), num_held=0, num_free=8) == 8


def test_with_room_for_a_part_the_leading_part_is_wanted(admission):
    assert admission.touch(new_chain(8), num_held=0, num_free=5) == 5


def test_what_is_held_takes_no_room(admission):
    assert admission.touch(new_chain(8), num_held=2, num_free=5) == 7


def test_room_goes_first_to_what_was_used_before(admission):
    chain = new_chain(8)
    admission.touch(chain[:4], num_held=0, num_free=0)
    assert admission.touch(chain, num_held=0, num_free=5) == 5


def test_what_was_used_before_is_wanted_without_room(admission):
    chain = new_chain()
    assert admission.touch(chain, num_held=0, num_free=0) == 0
    assert admission.touch(chain, num_held=0, num_free=0) == CHAIN


def test_only_the_part_that_was_used_before_is_wanted(admission):
    chain = new_chain()
    admission.touch([*chain[:6], *new_chain(4)], num_held=0, num_free=0)
    assert admission.touch(chain, num_held=0, num_free=0) == 6


def test_what_is_held_stays_wanted(admission):
    assert admission.touch(new_chain(), num_held=7, num_free=0) == 7


def test_what_never_comes_back_is_written_for_a_quarter_of_the_tier():
    num_wanted = churn(Admission(CAPACITY), 20 * CAPACITY)
    assert num_wanted == pytest.approx(CAPACITY * (1 + 1 / 4), rel=0.2)


def test_a_request_that_grows_does_not_use_its_prompt_again(admission):
    chain = new_chain()
    for num_blocks in range(4, CHAIN + 1):
        num_touched = num_blocks - 1 if num_blocks > 4 else 0
        wanted = admission.touch(
            chain[:num_blocks], num_held=0, num_free=0, num_touched=num_touched
        )
        assert wanted == 0


def test_what_grows_behind_wanted_blocks_is_used_for_the_first_time(admission):
    chain = new_chain()
    admission.touch(chain[:-1], num_held=0, num_free=0)
    admission.touch(chain[:-1], num_held=0, num_free=0)
    grown = admission.touch(chain, num_held=CHAIN - 1, num_free=0, num_touched=CHAIN - 1)
    assert grown == CHAIN - 1


def test_what_has_grown_is_used_again_by_the_next_request(admission):
    chain = new_chain()
    admission.touch(chain[:4], num_held=0, num_free=0)
    admission.touch(chain, num_held=0, num_free=0, num_touched=4)
    assert admission.touch(chain, num_held=0, num_free=0) == CHAIN


def test_growing_takes_room_where_there_is_some(admission):
    chain = new_chain()
    admission.touch(chain[:4], num_held=0, num_free=4)
    assert admission.touch(chain, num_held=4, num_free=20, num_touched=4) == CHAIN


def test_growing_earns_and_costs_only_what_is_new(admission):
    """Uses of a growing prompt would look like hits that only write-all has."""
    chain = new_chain(CAPACITY // 2)
    admission.touch(chain[:1], num_held=0, num_free=0)
    for num_blocks in range(2, len(chain) + 1):
        admission.touch(chain[:num_blocks], num_held=0, num_free=0, num_touched=num_blocks - 1)
    assert not wants_all(admission)


def test_where_blocks_come_back_in_time_all_are_written(admission):
    use_twice(admission, CAPACITY, num_between=CAPACITY // 2)
    assert wants_all(admission)


def test_where_blocks_come_back_too_late_for_the_tier_few_are_written(admission):
    use_twice(admission, 4 * CAPACITY, num_between=3 * CAPACITY // 2)
    assert not wants_all(admission)


def test_hits_that_both_rules_have_earn_no_trust(admission):
    hot = new_chain(CAPACITY // 4)
    for _ in range(40):
        admission.touch(hot, num_held=0, num_free=0)
        churn(admission, CAPACITY // 10)
    assert not wants_all(admission)


def test_a_change_of_the_load_is_followed_both_ways(admission):
    use_twice(admission, 20 * CAPACITY, num_between=CAPACITY // 2)
    assert wants_all(admission)
    churn(admission, 3 * CAPACITY)
    assert not wants_all(admission)
    churn(admission, 20 * CAPACITY)
    use_twice(admission, CAPACITY, num_between=CAPACITY // 2)
    assert wants_all(admission)


def test_a_chain_is_remembered_for_twice_the_capacity(admission):
    chain = new_chain()
    admission.touch(chain, num_held=0, num_free=0)
    churn(admission, 2 * CAPACITY - CHAIN)
    assert admission.touch(chain, num_held=0, num_free=0) == CHAIN


def test_a_chain_is_forgotten_after_four_times_the_capacity(admission):
    chain = new_chain()
    admission.touch(chain, num_held=0, num_free=0)
    churn(admission, 4 * CAPACITY)
    assert admission.touch(chain, num_held=0, num_free=0) == 0


def test_a_chain_that_is_used_and_used_is_never_forgotten(admission):
    chain = new_chain()
    admission.touch(chain, num_held=0, num_free=0)
    for _ in range(20):
        churn(admission, CAPACITY)
        assert admission.touch(chain, num_held=0, num_free=0) == CHAIN


def test_keys_remembered_are_bounded():
    admission, most = Admission(CAPACITY), 0
    for number in range(80):
        admission.touch(new_chain(3 * CAPACITY * (number % 10 == 0)), num_held=0, num_free=0)
        churn(admission, CAPACITY // 4)
        most = max(most, len(admission._seen._young) + len(admission._seen._old))
    assert 3 * CAPACITY < most <= 4 * CAPACITY
    assert len(admission._write_all._held) <= CAPACITY // 8
    assert len(admission._second_touch._held) <= CAPACITY // 8


@pytest.mark.parametrize("capacity", [2000, 10_000])
def test_what_is_remembered_takes_at_most_800_bytes_a_block(capacity):
    tracemalloc.start()
    admission, most_bytes = Admission(capacity), 0
    for _ in range(24):
        churn(admission, capacity // 4)
        most_bytes = max(most_bytes, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert most_bytes <= 800 * capacity


def test_what_a_shadow_holds_leaves_in_the_order_of_its_last_use():
    shadow = _Shadow(2)
    shadow.touch(["a"], 1)
    shadow.touch(["b"], 1)
    shadow.touch(["a"], 1)
    shadow.touch(["c"], 1)
    assert shadow.touch(["a"], 0) == (1, 0)


def test_the_tail_of_a_chain_leaves_a_shadow_first():
    shadow = _Shadow(3)
    assert shadow.touch(["a", "b", "c"], 3) == (0, 3)
    shadow.touch(["d"], 1)
    assert shadow.touch(["a", "b"], 0) == (2, 0)


def test_a_chain_on_which_the_generations_change_is_remembered_whole():
    seen = _SeenKeys(4)
    seen.add(["a", "b", "c"])
    assert seen.add(["a", "b", "x", "y"]) == 2
    seen.add(["p"])
    assert seen.add(["a", "b", "x", "y"]) == 4


def test_no_more_is_wanted_than_the_tier_has_room_for():
    chain = new_chain(50)
    assert Admission(20).touch(chain, num_held=0, num_free=20) == 20


@pytest.mark.parametrize("capacity", [1, 8, 100])
def test_the_answer_is_between_what_is_held_and_what_there_is(capacity):
    rng, admission = random.Random(capacity), Admission(capacity)
    chains = [new_chain(rng.randrange(30)) for _ in range(50)]
    for _ in range(2000):
        chain = rng.choice(chains)
        num_held = rng.randint(0, min(len(chain), capacity))
        num_touched = rng.choice((0, rng.randint(0, len(chain))))
        wanted = admission.touch(
            chain, num_held=num_held, num_free=rng.randint(0, 3), num_touched=num_touched
        )
        assert num_held <= wanted <= min(len(chain), capacity)
