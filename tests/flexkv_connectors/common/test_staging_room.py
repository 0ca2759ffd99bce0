"""Saves keep to the smallest ring, and have no bound where there is none."""

import pytest

from flexkv_connectors.common.staging_room import StagingRoom
from flexkv_core.metrics import Counters


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def room(counters):
    return StagingRoom(counters)


def test_without_a_ring_everything_may_be_saved(room):
    room.note([])
    assert not room.is_bounded


def test_the_smallest_ring_counts_whenever_it_is_reported(room):
    room.note([8, 5])
    room.note([])
    room.note([7])
    assert room.clip(6) == 5


def test_what_is_under_way_is_not_there_until_it_is_given_back(room):
    room.note([5])
    room.take(1, 2)
    room.take(2, 3)
    assert room.clip(4) == 0
    room.give_back(1)
    assert room.clip(4) == 2


def test_a_plan_that_took_nothing_gives_nothing_back(room):
    room.note([5])
    room.give_back(7)
    assert room.clip(6) == 5


def test_what_waits_is_counted_in_every_step_and_what_is_under_way_is_shown(room, counters):
    room.note([5])
    room.take(1, 3)
    assert (room.clip(6), room.clip(4)) == (2, 2)
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
