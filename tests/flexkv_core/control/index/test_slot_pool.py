"""Slots travel as packed bytes."""

from array import array

import pytest

from flexkv_core.control.index.slot_pool import SlotPool


def unpack(slots):
    return array("q", slots).tolist()


def test_a_new_pool_gives_every_slot_once():
    pool = SlotPool(10)
    assert sorted(unpack(pool.take(4)) + unpack(pool.take(6))) == list(range(10))


def test_slots_that_are_taken_together_lie_together():
    slots = unpack(SlotPool(10).take(4))
    assert slots == list(range(slots[0], slots[0] + 4))


def test_free_and_used_add_up():
    pool = SlotPool(10)
    pool.take(3)
    assert (pool.num_free, pool.num_used) == (7, 3)


def test_what_is_given_back_is_taken_again():
    pool = SlotPool(4)
    slots = pool.take(4)
    pool.give(bytearray(slots[8:24]))
    assert unpack(pool.take(2)) == unpack(slots)[1:3]


def test_taking_nothing_gives_nothing():
    pool = SlotPool(4)
    assert pool.take(0) == b""
    assert pool.num_free == 4


def test_more_than_is_free_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        SlotPool(4).take(5)


def test_more_than_was_taken_is_a_bug_of_the_caller():
    pool = SlotPool(4)
    slots = pool.take(1)
    pool.give(slots)
    with pytest.raises(AssertionError):
        pool.give(slots)


def test_a_pool_that_shrinks_and_grows_in_steps_has_every_slot_once():
    pool = SlotPool(10)
    pool.resize(4)
    for capacity_blocks in (6, 9, 13):
        pool.resize(capacity_blocks)
        assert pool.capacity_blocks == pool.num_free == capacity_blocks
    assert sorted(unpack(pool.take(13))) == list(range(13))
