"""Blocks of a chain that are stored although those before them are not."""

import random
import threading

import pytest
from store_rig import DirectRig, Rig, chain

from flexkv_core.block_store.blocks import Blocks
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import FaultyTier, SlowTier

KEYS = chain(0, 10)


@pytest.fixture
def rig(start):
    return start()


def find(rig, keys, first):
    """Return how many leading blocks of `keys` from `first` on are found."""
    found = rig.store.lookup(keys[first:], before=keys[:first])
    assert found == sorted(found, reverse=True)
    return sum(found)


def test_blocks_are_stored_and_found_behind_others_that_are_missing(rig):
    expected = rig.content(range(6))
    assert rig.save(KEYS, range(6)) == 6  # the last six
    assert find(rig, KEYS, 4) == 6
    assert find(rig, KEYS, 6) == 4
    assert find(rig, KEYS[4:], 0) == 6
    assert rig.load(KEYS, range(20, 26)) == 6
    assert rig.content(range(20, 26)) == expected


def test_without_what_is_before_them_they_are_no_beginning_of_a_prompt(rig):
    rig.save(KEYS, range(6))
    before = rig.content(range(20, 30))
    assert rig.find(KEYS) == 0
    assert rig.load(KEYS, range(20, 30)) == 0
    assert rig.content(range(20, 30)) == before


def test_a_gap_heals_when_its_blocks_are_stored(rig):
    expected = rig.content(range(10))
    rig.save(KEYS, range(4, 10))
    assert rig.save(KEYS[:4], range(4)) == 4
    assert rig.find(KEYS) == 10
    assert rig.load(KEYS, range(20, 30)) == 10
    assert rig.content(range(20, 30)) == expected


def test_what_is_behind_a_gap_that_is_being_filled_is_not_found_yet(start):
    gate = threading.Event()
    gate.set()
    rig = start(wrap=lambda tier: SlowTier(tier, gate))
    rig.save(KEYS[:8], [6, 7])
    gate.clear()
    job_id = rig.store.submit_save(Blocks(KEYS[:6], range(6)))
    assert rig.find(KEYS) == 0
    gate.set()
    rig.store.wait(job_id)
    assert rig.find(KEYS) == 8


def test_the_next_process_finds_the_blocks_and_the_one_after_it_the_whole_chain(start):
    rig = start()
    expected = rig.content(range(10))
    rig.save(KEYS, range(4, 10))
    rig = start()
    assert (rig.find(KEYS), find(rig, KEYS, 4)) == (0, 6)
    rig.save(KEYS[:4], range(4))
    assert rig.find(KEYS) == 10
    rig = start()
    assert not rig.store._catalog._manager.begins_chain(KEYS[4])
    rig.memory[:] = 0
    assert rig.load(KEYS, range(10)) == 10
    assert rig.content(range(10)) == expected


def test_every_gap_is_filled_and_what_is_there_is_not_written_again(rig):
    rig.save(KEYS[:4], [2, 3])
    rig.save(KEYS[:8], [6, 7])
    rig.store.take_counts()
    expected = rig.content(range(10))
    assert rig.save(KEYS, range(10)) == 4  # up to the next gap
    assert rig.save(KEYS, range(10)) == 8
    assert rig.save(KEYS, range(10)) == 10
    block_bytes = len(rig.content([0])[0])
    assert rig.store.take_counts()["save_bytes"] == 6 * block_bytes
    assert rig.load(KEYS, range(20, 30)) == 10
    assert rig.content(range(20, 30)) == expected


def test_what_follows_such_blocks_is_stored_behind_them_and_branches(rig):
    other = [*KEYS[:6], *chain(100, 4)]
    rig.save(KEYS[:6], [4, 5])
    assert rig.save(KEYS, [6, 7, 8, 9]) == 4
    assert rig.save(other, [16, 17, 18, 19]) == 4
    expected = rig.content([4, 5, 16, 17, 18, 19])
    assert (find(rig, KEYS, 4), find(rig, other, 4)) == (6, 6)
    assert rig.load(other, range(20, 26)) == 6
    assert rig.content(range(20, 26)) == expected


def test_a_bad_block_leaves_alone_what_was_stored_apart_from_it(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {10 + 1: Status.CORRUPT}))
    rig.save(KEYS, range(4, 10))
    rig.save(KEYS[:4], range(4))
    job_id = rig.store.submit_load(Blocks(KEYS, range(20, 30)))
    good = [status is Status.OK for status in rig.store.wait(job_id).statuses]
    assert good == [True] + [False] * 3 + [True] * 6
    assert (rig.find(KEYS), find(rig, KEYS, 4)) == (1, 6)


def test_they_leave_when_room_is_needed(start):
    rig = start(DirectRig, quota_bytes=4096 + 10 * 8192)
    rig.save(KEYS, range(4, 10))
    for first in range(100, 140, 10):
        assert rig.save(chain(first, 10), range(10)) == 10
    assert find(rig, KEYS, 4) == 0
    assert rig.store.take_counts()["ssd_used_blocks"] == 10


def tree_of(seed):
    """Return chains that part at random places."""
    pick = random.Random(seed)
    chains = [chain(0, 12)]
    for number in range(1, 5):
        shared = pick.choice(chains)[: pick.randrange(12)]
        chains.append([*shared, *chain(100 * number, 12 - len(shared))])
    return chains


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_stored_in_whatever_order_comes_back_as_it_was(start, seed):
    pick, chains = random.Random(seed), tree_of(seed)
    rig = start(DirectRig, quota_bytes=4096 + 24 * 8192)
    content = {}
    for _ in range(60):
        keys = pick.choice(chains)[: pick.randint(1, 12)]
        first = pick.randrange(len(keys))
        pages = range(first, len(keys))
        if pick.random() < 0.5:
            for key, page in zip(keys[first:], pages, strict=True):
                rig.pages[page] = content.setdefault(key, pick.randbytes(1)[0])
            rig.save(keys, pages)
        else:
            num_found = find(rig, keys, first)
            assert rig.load(keys, pages) == num_found
            for page in pages[:num_found]:
                assert set(rig.pages[page].tolist()) == {content[keys[page]]}
        rig.store._catalog._manager.check_integrity()
        if pick.random() < 0.05:
            rig = start(DirectRig, quota_bytes=4096 + 24 * 8192)


def test_no_block_is_planned_twice_while_it_is_being_stored(start):
    """Two jobs whose blocks overlap, behind a gap each, both under way."""
    rig = start(Rig)
    first = rig.store.submit_save(Blocks(KEYS[4:8], range(4, 8), KEYS[:4]))
    second = rig.store.submit_save(Blocks(KEYS[2:], range(2, 10), KEYS[:2]))
    assert rig.store.wait(first).statuses == [Status.OK] * 4
    rig.store.wait(second)
    rig.store._catalog._manager.check_integrity()
    assert find(rig, KEYS, 2) >= 6


def test_a_part_that_the_engine_has_itself_is_no_miss(rig):
    rig.save(KEYS[:8], [5, 6, 7])
    rig.save(KEYS[:5], range(5))
    rig.store.take_counts()
    assert rig.load(KEYS[:8], [20, 21, 22]) == 3
    counts = rig.store.take_counts()
    assert (counts["match_hit_blocks"], counts.get("match_miss", 0)) == (3, 0)
