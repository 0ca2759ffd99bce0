"""What all stores share: who waits for whom."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_rig import DirectRig, chain

from flexkv_core.block_store import job_queue
from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.data.tiers.ssd.files import HeaderFile
from flexkv_core.errors import TierError
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import FaultyTier, SlowTier

KEYS = chain(0, 10)


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Yield a store that a load hangs in; it ends when the test does."""
    monkeypatch.setattr(job_queue, "_GRACE_S", 0.01)
    gate = threading.Event()
    gate.set()
    tiers = []

    def slow(tier):
        tiers.append(SlowTier(tier, gate))
        return tiers[0]

    rig = DirectRig(tmp_path, wrap=slow, load_limit_s=0.01)
    rig.save(KEYS, range(10))
    tiers[0].entered.acquire()
    gate.clear()
    with ThreadPoolExecutor(1) as thread:
        load = thread.submit(rig.load, KEYS, range(10))
        tiers[0].entered.acquire()
        yield rig
        gate.set()
        assert load.result() == 10
    rig.store.close()


def test_while_the_disk_hangs_it_is_still_said_what_is_there(hanging):
    assert hanging.find(KEYS) == 10
    assert hanging.save(KEYS, range(10)) == 10
    assert hanging.store.take_counts()["ssd_used_blocks"] == 10


def test_while_the_disk_hangs_nobody_waits_for_it_for_ever(hanging):
    with pytest.raises(
        TierError, match="a load has not ended after 0 s, and nothing was forgotten"
    ):
        hanging.store.reset(keeps_name=True)
    with pytest.raises(
        TierError, match="a load has not ended after 0 s, and nothing was forgotten"
    ):
        hanging.store.close()
    assert hanging.find(KEYS) == 10


@pytest.fixture
def start(start):
    """Start them with pages that are stored as they are, as they are."""
    return lambda **options: start(DirectRig, **options)


def failing(status, numbers):
    """Return a wrapper under which the accesses of these numbers end so."""
    return lambda tier: FaultyTier(tier, dict.fromkeys(numbers, status))


def test_blocks_that_came_too_late_are_not_forgotten(start):
    store = start(wrap=failing(Status.TIMEOUT, [13]))
    store.save(KEYS, range(10))
    assert store.load(KEYS, range(10)) == 3
    assert store.find(KEYS) == 10


def test_a_disk_that_fails_again_and_again_is_left_alone(start):
    store, chains = start(wrap=failing(Status.ERROR, [4, 5, 6])), [[key] for key in KEYS[:4]]
    for keys in chains:
        store.save(keys, [0])
    assert [store.load(keys, [0]) for keys in chains[:3]] == [0, 0, 0]
    assert store.store.take_counts()["ssd_off"]
    assert (store.load(chains[3], [0]), store.find(chains[3])) == (0, 0)


def test_a_store_that_has_no_time_to_read_claims_nothing_and_stores_all_the_same(start):
    store = start(load_limit_s=0.0)
    assert store.save(KEYS, range(10)) == 10
    assert [store.load(KEYS, range(10)) for _ in range(4)] == [0] * 4
    assert store.find(KEYS) == 0
    counts = store.store.take_counts()
    assert (counts["ssd_off"], counts.get("load_failed_blocks", 0)) == (0, 0)
    store.close()
    assert start().find(KEYS) == 10


def test_nothing_is_stored_before_it_is_known_what_is_there(start, monkeypatch):
    start().save(KEYS, range(10))
    may_go_on = threading.Event()
    prefetch = HeaderFile.prefetch

    def wait_first(self, offset):
        may_go_on.wait()
        prefetch(self, offset)

    monkeypatch.setattr(HeaderFile, "prefetch", wait_first)
    store = start(waits=False)
    assert store.save(chain(20, 10), range(10)) == 0
    assert "save_failed_blocks" not in store.store.take_counts()  # or writing would be switched off
    may_go_on.set()
    store.store.wait_restored()
    assert store.find(KEYS) == store.save(chain(20, 10), range(10)) == 10


def test_thousands_of_pages_are_stored_in_one_call(start):
    store, keys = start(access=Access.SINGLE), chain(0, 3000)
    assert all(store.save(keys, [number % 32 for number in range(3000)]))
    assert all(store.find(keys))


def test_what_another_job_is_storing_counts_as_stored(start):
    gate, tiers = threading.Event(), []

    def slow(tier):
        tiers.append(SlowTier(tier, gate))
        return tiers[0]

    store = start(wrap=slow).store
    first = store.submit_save(Blocks(KEYS[:2], [0, 1]))
    tiers[0].entered.acquire()
    again = store.submit_save(Blocks(KEYS[:2], [0, 1]))
    assert store.wait(again).statuses == [Status.OK] * 2
    gate.set()
    assert store.wait(first).statuses == [Status.OK] * 2


def test_a_caller_may_use_its_lists_again(start):
    store = start()
    store.save(KEYS, range(10))
    keys, page_ids = KEYS[:4], [20, 21, 22, 23]
    job_id = store.store.submit_load(Blocks(keys, page_ids))
    page_ids.clear()
    assert store.store.wait(job_id).statuses == [Status.OK] * 4


def test_many_loads_at_once_are_no_failure_of_the_disk(start):
    store = start()
    store.save(KEYS[:1], [0])
    jobs = [store.store.submit_load(Blocks(KEYS[:1], [1])) for _ in range(1100)]
    for job_id in jobs:
        store.store.wait(job_id)
    assert not store.store.take_counts()["ssd_off"]
    assert store.find(KEYS[:1]) == 1


def test_a_store_that_was_closed_may_be_given_less_room(start):
    store = start().store
    store.close()
    store.resize(1 << 20)
