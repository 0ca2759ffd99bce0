"""The scan of headers while everything else goes on."""

import threading

import pytest

from flexkv_core.data.tiers.ssd import scan as scan_module
from flexkv_core.data.tiers.ssd.files import HeaderFile
from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status


@pytest.fixture
def paused(monkeypatch):
    """Let scans wait before their first header until the event is set."""
    may_go_on = threading.Event()
    prefetch = HeaderFile.prefetch

    def wait_first(self, offset):
        may_go_on.wait()
        prefetch(self, offset)

    monkeypatch.setattr(HeaderFile, "prefetch", wait_first)
    yield may_go_on
    may_go_on.set()


@pytest.fixture
def open_early(disk, monkeypatch):
    """Open a tier whose scan is still under way."""

    def open_tier(**options):
        with monkeypatch.context() as patch:
            patch.setattr("flexkv_core.data.tiers.ssd.tier.SsdTier.wait_recovered", lambda _: None)
            return disk.open(**options)

    return open_tier


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(scan_module, "_BATCH_SLOTS", 3)


def test_blocks_are_missed_and_not_waited_for(disk, open_early, paused):
    disk.store(range(8))
    rank = open_early()
    assert rank.read([1]) == [MISS]
    assert not rank.tier.is_recovered
    paused.set()
    rank.tier.wait_recovered()
    assert rank.read([1]) == [OK]


def test_slots_that_were_not_looked_at_are_not_written(disk, open_early, paused):
    quota = 4096 + 8 * disk.slot_bytes
    disk.store(range(8), quota_bytes=quota)
    rank = open_early(quota_bytes=quota)
    assert rank.write([20]) == [ERROR]
    paused.set()
    assert rank.recovered() == list(range(8))


def test_slots_that_are_added_meanwhile_are_not_looked_at(disk, open_early, paused):
    disk.store(range(8), quota_bytes=4096 + 8 * disk.slot_bytes)
    rank = open_early()
    assert rank.write(range(20, 28)) == [OK] * 8
    paused.set()
    assert rank.recovered() == list(range(8))
    assert set(rank.read([*range(8), *range(20, 28)])) == {OK}


def test_a_block_that_was_written_meanwhile_is_there_once(disk, open_early, paused):
    disk.store(range(8), quota_bytes=4096 + 8 * disk.slot_bytes)
    rank = open_early(quota_bytes=4096 + 9 * disk.slot_bytes)
    assert rank.write([3]) == [OK]
    paused.set()
    assert rank.recovered() == [0, 1, 2, 4, 5, 6, 7]
    rank.tier.delete([disk.key(3)])
    assert rank.read([3]) == [MISS]
    assert rank.write([30, 31]) == [OK, OK]


def test_a_block_that_a_write_completed_meanwhile_is_kept(disk, open_early, paused):
    """One column's cell was found, the other's had been damaged and is written anew."""
    disk.store([1], columns=disk.columns, quota_bytes=2 * (4096 + 8 * disk.slot_bytes))
    second = next(slab for slab in disk.slabs() if "heads-1-1" in str(slab))
    second.unlink()
    rank = open_early(columns=disk.columns)
    assert rank.write([1]) == [OK]
    paused.set()
    rank.tier.wait_recovered()
    assert rank.read([1]) == [OK]


def test_closing_does_not_wait_for_all_headers(disk, open_early, paused, monkeypatch):
    monkeypatch.setattr(scan_module, "_STOP_WAIT_S", 0.0)
    disk.store(range(8))
    rank = open_early()
    rank.tier.close()
    paused.set()
    rank.tier.wait_recovered()
    assert rank.tier.take_recovered(9) == []


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()], ids=repr)
def test_a_slab_that_cannot_be_opened_again_is_left_alone(disk, monkeypatch, error):
    disk.store(range(8))

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(HeaderFile, "__init__", fail)
        rank = disk.open()
    assert rank.recovered() == []
    assert rank.write(range(8)) == [OK] * 8
    assert disk.open(engine_id="other").recovered() == list(range(8))


def test_a_slab_that_is_deleted_meanwhile_is_given_up(disk, open_early, paused):
    disk.store(range(8))
    rank = open_early()
    disk.slabs()[0].unlink()
    assert rank.read([1]) == [MISS]
    paused.set()
    assert rank.recovered() == []


def test_all_batches_are_looked_at(disk):
    disk.store(range(10), quota_bytes=4096 + 10 * disk.slot_bytes)
    assert disk.open().recovered() == list(range(10))


def test_a_slab_may_be_cut_while_it_is_looked_through(disk, open_early, paused):
    quota = 4096 + 8 * disk.slot_bytes
    disk.store(range(8), quota_bytes=quota)
    rank = open_early(quota_bytes=quota)
    rank.tier.resize(quota - 1)
    paused.set()
    rank.tier.wait_recovered()
    assert rank.read(range(8)).count(OK) == 7
    assert rank.write([20]) == [ERROR]


@pytest.mark.parametrize("call", ["read", "prefetch"])
def test_a_scan_that_is_stopped_asks_a_slow_disk_for_nothing_more(
    disk, open_early, monkeypatch, call
):
    """It would outlive the tier by as many calls as there are headers in a batch."""
    disk.store(range(8))
    original, calls, may_go_on = getattr(HeaderFile, call), [], threading.Event()
    monkeypatch.setattr(scan_module, "_BATCH_SLOTS", 256)
    monkeypatch.setattr(scan_module, "_STOP_WAIT_S", 0.0)

    def slow(self, *arguments):
        calls.append(arguments)
        may_go_on.wait()
        return original(self, *arguments)

    monkeypatch.setattr(HeaderFile, call, slow)
    rank = open_early()
    rank.tier.close()
    may_go_on.set()
    rank.tier.wait_recovered()
    assert len(calls) <= 1
    monkeypatch.undo()
    assert disk.open().recovered() == list(range(8))


def test_a_block_that_has_lost_a_column_since_it_was_found_takes_no_room(disk):
    disk.store([1, 2], columns=disk.columns)
    rank = disk.open(columns=disk.columns)
    first, second = rank.tier._columns
    second.space.retire(second.space.slabs)
    assert rank.tier.take_recovered(9) == []
    assert disk.key(1) not in first
