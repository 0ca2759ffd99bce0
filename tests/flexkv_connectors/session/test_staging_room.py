"""Saves keep to the smallest ring, and have no bound where there is none."""

import pytest

from flexkv_connectors.session.staging_room import StagingRoom
from flexkv_core.metrics import Counters


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def room(counters):
    return StagingRoom(counters)


def none():
    """Return that no block of a chain is there yet."""
    return 0


def test_without_a_ring_everything_may_be_saved_and_nothing_is_asked(room):
    room.note([])
    assert room.clip(6, pytest.fail) == 6


def test_what_needs_no_saving_takes_no_place(room):
    room.note([5])
    assert room.clip(9, lambda: 3) == 8
    assert room.clip(2, lambda: 3) == 2


def test_the_smallest_ring_counts_whenever_it_is_reported(room):
    room.note([8, 5])
    room.note([])
    room.note([7])
    assert room.clip(6, none) == 5


def test_what_is_under_way_is_not_there_until_it_is_given_back(room):
    room.note([5])
    room.take(1, 2)
    room.take(2, 3)
    assert room.clip(4, none) == 0
    room.give_back(1)
    assert room.clip(4, none) == 2


def test_a_plan_that_took_nothing_gives_nothing_back(room):
    room.note([5])
    room.give_back(7)
    assert room.clip(6, none) == 5


def test_what_waits_is_counted_in_every_step_and_what_is_under_way_is_shown(room, counters):
    room.note([5])
    room.take(1, 3)
    assert (room.clip(6, none), room.clip(4, none)) == (2, 2)
    assert counters.drain() == {
        "staging_capacity_blocks": 5,
        "staging_used_blocks": 3,
        "save_delayed_blocks": 6,
    }
    room.give_back(1)
    assert counters.drain() == {"staging_used_blocks": 0}


def test_where_nothing_is_staged_nothing_is_said_of_it(room, counters):
    room.note([])
    room.take(1, 100)
    assert counters.drain() == {}
