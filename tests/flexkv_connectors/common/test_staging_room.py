"""Saves keep to the smallest ring, and have no bound where there is none."""

from flexkv_connectors.common.staging_room import StagingRoom


def test_without_a_ring_everything_may_be_saved():
    room = StagingRoom()
    room.note([])
    room.take(1, 100)
    assert room.clip(1000) == 1000


def test_the_smallest_ring_counts_whenever_it_is_reported():
    room = StagingRoom()
    room.note([8, 5])
    room.note([])
    room.note([7])
    assert room.clip(6) == 5


def test_what_is_under_way_is_not_there_until_it_is_given_back():
    room = StagingRoom()
    room.note([5])
    room.take(1, 2)
    room.take(2, 3)
    assert room.clip(4) == 0
    room.give_back(1)
    assert room.clip(4) == 2


def test_a_plan_that_took_nothing_gives_nothing_back():
    room = StagingRoom()
    room.note([5])
    room.give_back(7)
    assert room.clip(6) == 5
