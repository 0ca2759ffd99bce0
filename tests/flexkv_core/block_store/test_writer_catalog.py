"""What a writing rank has in chains: found, loaded and saved, and found by the next process."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from store_rig import chain

from flexkv_core.plan import Status
from flexkv_core.testing.doubles import FaultyTier

KEYS = chain(0, 10)


@pytest.fixture
def rig(start):
    return start()


def test_what_was_saved_is_found_and_comes_back_to_other_pages(rig):
    expected = rig.content(range(10))
    assert rig.find(KEYS) == 0
    assert rig.save(KEYS, range(10)) == 10
    assert rig.find(KEYS) == 10
    assert rig.load(KEYS, range(29, 19, -1)) == 10
    assert rig.content(range(29, 19, -1)) == expected


def test_no_other_page_is_touched(rig):
    rig.save(KEYS, range(10))
    others = [page for page in range(32) if not 20 <= page < 30]
    before = rig.content(others)
    rig.load(KEYS, range(20, 30))
    assert rig.content(others) == before


def test_a_part_of_a_chain_is_loaded_behind_what_comes_before_it(rig):
    expected = rig.content(range(10))
    rig.save(KEYS[:4], range(4))
    assert rig.save(KEYS, range(4, 10)) == 6
    assert rig.load(KEYS[:8], [20, 21, 22]) == 3
    assert rig.content([20, 21, 22]) == expected[5:8]


def test_blocks_that_are_there_are_not_written_again(rig):
    rig.save(KEYS[:6], range(6))
    rig.store.take_counts()
    assert rig.save(KEYS[:6], range(6)) == 6
    assert "ssd_write_bytes" not in rig.store.take_counts()


def test_what_is_not_there_fills_no_page(rig):
    before = rig.content(range(32))
    rig.save(KEYS[:2], range(2))
    assert rig.load(chain(100, 3), [20, 21, 22]) == 0
    assert rig.load(KEYS[:5], [20, 21]) == 0
    assert rig.content(range(32)) == before


def test_the_next_process_finds_it(start):
    rig = start()
    expected = rig.content(range(10))
    rig.save(KEYS, range(10))
    rig = start()
    rig.memory[:] = 0
    assert rig.find(KEYS) == 10
    assert rig.load(KEYS, range(10)) == 10
    assert rig.content(range(10)) == expected


def test_a_bad_block_ends_the_load_and_leaves_with_all_behind_it(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {10 + 3: Status.CORRUPT}))
    rig.save(KEYS, range(10))
    before = rig.content(range(23, 30))
    assert rig.load(KEYS, range(20, 30)) == 3
    assert rig.content(range(23, 30)) == before
    assert rig.find(KEYS) == 3
    assert rig.save(KEYS, range(10)) == 10
    assert rig.find(KEYS) == 10


def test_a_failed_write_is_not_found(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {4: Status.ERROR}))
    assert rig.save(KEYS, range(10)) == 4
    assert rig.find(KEYS) == 4


def test_bytes_flipped_on_the_disk_are_a_miss(start, tmp_path):
    rig = start()
    rig.save(KEYS, range(10))
    rig.close()
    for slab in tmp_path.rglob("*.slab"):
        content = bytearray(slab.read_bytes())
        content[4096 + 2 * 8192 + 4096 + 5] ^= 1  # the third slot's payload
        slab.write_bytes(content)
    rig = start()
    before = rig.content(range(32))
    num_good = rig.load(KEYS, range(20, 30))
    assert num_good < 10
    assert rig.content(range(20 + num_good, 30)) == before[20 + num_good : 30]
    assert rig.store.take_counts()["ssd_corrupt_blocks"] >= 1


def test_old_blocks_make_room_for_new_ones_within_the_quota(start, tmp_path):
    quota_bytes = 256 << 10
    rig = start(quota_bytes=quota_bytes)
    for first in range(0, 400, 10):
        assert rig.save(chain(first, 10), range(10)) == 10
    assert rig.find(chain(0, 10)) == 0
    assert rig.load(chain(390, 10), range(20, 30)) == 10
    assert sum(slab.stat().st_size for slab in tmp_path.rglob("*.slab")) <= quota_bytes


def test_blocks_that_are_loaded_outlive_those_that_are_not(start):
    rig = start(quota_bytes=256 << 10)
    rig.save(KEYS, range(10))
    for first in range(100, 140, 2):
        rig.save(chain(first, 2), range(2))
        assert rig.load(KEYS, range(20, 30)) == 10
    assert rig.find(chain(100, 2)) == 0


def test_a_reset_forgets_and_later_blocks_are_kept(start):
    rig = start()
    rig.save(KEYS, range(10))
    rig.store.reset(keeps_name=True)
    assert rig.find(KEYS) == 0
    assert rig.save(KEYS[:3], range(3)) == 3
    assert start().find(KEYS) == 3


def test_loads_and_saves_of_several_threads_do_not_disturb_each_other(rig):
    expected = rig.content(range(10))
    rig.save(KEYS, range(10))

    def load(_):
        return rig.load(KEYS, range(20, 30))

    def save(number):
        return rig.save(chain(1000 * number, 10), range(10))

    with ThreadPoolExecutor(4) as threads:
        loads = threads.map(load, range(20))
        saves = threads.map(save, range(1, 21))
        finds = threads.map(lambda _: rig.find(KEYS), range(20))
        assert [*loads, *saves, *finds] == [10] * 60
    assert rig.content(range(20, 30)) == expected


def test_what_was_moved_is_reported_once_by_job(rig):
    rig.save(KEYS, range(10))
    rig.save(KEYS, range(10))  # moves nothing
    rig.load(KEYS[:4], range(20, 24))
    copies = rig.store.take_copies()
    assert [copy.num_blocks for copy in copies.saves] == [10]
    assert [copy.num_blocks for copy in copies.loads] == [4]
    block_bytes = len(rig.content([0])[0])
    assert [copy.num_bytes for copy in copies.loads] == [4 * block_bytes]
    assert rig.store.take_copies() == ([], [])


def test_hits_are_the_blocks_of_each_load_and_not_those_before_it(rig):
    rig.save(KEYS, range(10))
    rig.store.take_counts()
    rig.load(KEYS[:4], range(20, 24))
    rig.load(KEYS, range(24, 30))
    rig.load(chain(100, 3), range(20, 23))
    counts = rig.store.take_counts()
    assert (counts["match_hit_blocks"], counts["match_miss"]) == (10, 1)


def test_moved_and_lost_blocks_are_counted(start):
    rig = start(wrap=lambda tier: FaultyTier(tier, {10 + 3: Status.CORRUPT}))
    rig.save(KEYS, range(10))
    rig.load(KEYS, range(20, 30))
    counts = rig.store.take_counts()
    block_bytes = len(rig.content([0])[0])
    assert counts["save_bytes"] == 10 * block_bytes
    assert counts["load_bytes"] == 3 * block_bytes
    assert counts["load_failed_blocks"] == 7
    assert counts["load_seconds"] > 0


def test_a_bad_block_costs_none_of_those_before_it(start):
    reads = range(10, 13)
    rig = start(wrap=lambda tier: FaultyTier(tier, {reads[1]: Status.CORRUPT}))
    rig.save(KEYS, range(10))
    assert rig.load(KEYS[:8], [20, 21, 22]) == 1
    assert rig.find(KEYS) == 6
