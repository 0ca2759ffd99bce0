"""What a writing rank has of blocks that each stand alone."""

from functools import partial

import pytest
from store_rig import chain

from flexkv_core.block_store.blocks import Access
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import FaultyTier

KEYS = chain(0, 10)
ODD = KEYS[1::2]


@pytest.fixture
def start(start):
    """Start them with stores of single pages."""
    return partial(start, access=Access.SINGLE)


@pytest.fixture
def rig(start):
    return start()


def test_a_page_is_stored_whatever_is_before_it(rig):
    assert rig.save(ODD, range(5)) == [True] * 5
    assert rig.find(KEYS) == [False, True] * 5


def test_pages_come_back_to_other_pages_and_those_that_are_missing_keep_theirs(rig):
    rig.save(ODD, [1, 3, 5, 7, 9])
    before = rig.content(range(20, 30))
    stored = rig.content(range(10))
    assert rig.load(KEYS, range(20, 30)) == [False, True] * 5
    assert rig.content(range(21, 30, 2)) == stored[1::2]
    assert rig.content(range(20, 30, 2)) == before[::2]


def test_the_next_process_finds_pages_that_stand_alone(start):
    rig = start()
    expected = rig.content(range(5))
    rig.save(ODD, range(5))
    rig = start()
    rig.memory[:] = 0
    assert rig.find(KEYS) == [False, True] * 5
    assert rig.load(ODD, range(20, 25)) == [True] * 5
    assert rig.content(range(20, 25)) == expected


def test_a_bad_page_is_forgotten_alone_and_can_be_stored_again(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {10 + 3: Status.CORRUPT}))
    rig.save(KEYS, range(10))
    loaded = [rig.load([key], [20])[0] for key in KEYS]
    assert loaded == [True] * 3 + [False] + [True] * 6
    assert rig.find(KEYS) == loaded
    assert rig.save([KEYS[3]], [3]) == [True]
    assert all(rig.load(KEYS, range(10)))


def test_a_page_that_could_not_be_written_is_said_and_the_others_are_stored(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {3: Status.ERROR}))
    stored = rig.save(KEYS, range(10))
    assert sorted(stored) == [False] + [True] * 9
    assert rig.find(KEYS) == stored


def test_a_key_that_is_named_twice_is_written_once(rig):
    assert rig.save([KEYS[0]] * 3, [1, 1, 1]) == [True] * 3
    assert rig.load([KEYS[0]] * 2, [20, 21]) == [True, True]
    assert rig.content([20, 21]) == rig.content([1, 1])


def test_more_pages_than_wait_at_once_are_stored(rig):
    keys = chain(0, 300)
    pages = [number % 30 for number in range(300)]
    assert all(rig.save(keys, pages))
    assert all(rig.load(keys[::-1], [30] * 300))


def test_no_pages_are_no_work(rig):
    assert rig.find([]) == rig.load([], []) == rig.save([], []) == []
    assert rig.store.take_copies() == ([], [])


def test_a_job_is_reported_as_one_copy(rig):
    rig.save(KEYS, range(10))
    (copy,) = rig.store.take_copies().saves
    assert copy.num_blocks == 10
    assert copy.num_bytes == 10 * len(rig.content([0])[0])


def test_old_pages_make_room_for_new_ones_where_there_is_less_of_it(rig, tmp_path):
    rig.store.resize(256 << 10)
    for first in range(0, 100, 5):
        assert all(rig.save(chain(first, 5), range(5)))
    assert rig.find(chain(0, 5)) == [False] * 5
    assert sum(slab.stat().st_size for slab in tmp_path.rglob("*.slab")) <= 256 << 10


def test_a_full_store_that_gets_a_little_less_room_loses_little(start):
    rig = start(quota_bytes=300 << 10)
    rig.save(KEYS, range(10))
    num_stored = sum(rig.save(chain(20, 10), range(10, 20)))
    rig = start(quota_bytes=300 << 10)
    rig.store.resize((300 << 10) - 1)
    num_loaded = sum(rig.load(KEYS + chain(20, 10), range(20)))
    assert num_loaded >= num_stored - 2
