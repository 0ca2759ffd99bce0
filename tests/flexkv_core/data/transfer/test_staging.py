"""Every place of the ring belongs to one save at a time."""

from flexkv_core.data.transfer.staging import StagingRing


def test_places_are_taken_in_turn():
    ring = StagingRing(4)
    first, second = ring.take(2), ring.take(1)
    ring.give_back(first)
    assert (second.tolist(), ring.take(3).tolist()) == ([2], [3, 0, 1])


def test_more_than_is_free_takes_nothing():
    ring = StagingRing(3)
    ring.take(1)
    assert ring.take(3) is None
    assert ring.take(2).tolist() == [1, 2]
