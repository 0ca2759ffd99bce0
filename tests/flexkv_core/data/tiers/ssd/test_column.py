"""One column: keys, runs, and two calls about the same key."""

import threading

import pytest

from flexkv_core.data.tiers.ssd.column import ColumnStore
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.format import CellHeader
from flexkv_core.data.tiers.ssd.slab import Cell, Slab
from flexkv_core.data.tiers.ssd.space import Space
from flexkv_core.plan import Status, StoredKey
from flexkv_core.testing.doubles import ManualClock

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def column(disk, clock):
    directories = [Directory(disk.path, None, 0)]
    space = Space(directories, disk.superblock(), 1 << 20, "engine", clock, is_aligned=False)
    yield ColumnStore(space, Counts(), clock)
    space.close()


@pytest.fixture
def cells(disk):
    def make(numbers):
        return [
            Cell(disk.key(number), None, (memoryview(bytearray(disk.content(number, 8192))),))
            for number in numbers
        ]

    return make


def test_a_key_is_there_after_its_write(column, cells, disk):
    assert disk.key(1) not in column
    assert column.write(cells([1]), None) == [OK]
    assert disk.key(1) in column


def test_a_key_cannot_be_read_while_it_is_written(column, cells, monkeypatch):
    write = Slab.write
    during = []

    def watched(self, first_slot, written):
        during.extend(column.read(cells([1]), None))
        write(self, first_slot, written)

    monkeypatch.setattr(Slab, "write", watched)
    column.write(cells([1]), None)
    assert during == [MISS]


def test_a_key_that_two_calls_write_at_once_takes_one_slot(column, cells, monkeypatch):
    both = threading.Barrier(2)
    write = Slab.write

    def together(self, first_slot, written):
        both.wait()
        write(self, first_slot, written)

    monkeypatch.setattr(Slab, "write", together)
    threads = [threading.Thread(target=column.write, args=(cells([1]), None)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [slab] = column.space.slabs
    assert slab.slots.num_free == len(slab.slots) - 1
    assert column.read(cells([1]), None) == [OK]


def test_a_key_twice_in_one_call_takes_one_slot(column, cells):
    assert column.write(cells([1, 1]), None) == [OK, OK]
    [slab] = column.space.slabs
    assert slab.slots.num_free == len(slab.slots) - 1
    assert column.read(cells([1, 1]), None) == [OK, OK]


def test_statuses_have_the_order_of_the_call(column, cells):
    column.write(cells([1, 2, 3, 4]), None)
    assert column.read(cells([4, 9, 2, 1, 8, 3]), None) == [OK, MISS, OK, OK, MISS, OK]


def test_what_begins_late_does_not_begin(column, cells, clock):
    column.write(cells([1]), None)
    assert column.read(cells([1, 2]), clock.now - 1) == [TIMEOUT, MISS]
    assert column.write(cells([1, 2]), clock.now - 1) == [OK, TIMEOUT]


def test_what_begins_in_time_is_finished(column, cells, clock):
    assert column.write(cells([1]), clock.now) == column.read(cells([1]), clock.now) == [OK]


@pytest.fixture
def adopted(column, cells, disk):
    """Return a slab of four slots of which nothing is known."""
    column.write(cells([0]), None)
    column.forget([disk.key(0)])
    [slab] = column.space.slabs
    slab.slots.take(len(slab.slots))
    slab.slots._num_pins.clear()
    slab.slots._released.clear()
    return slab


def test_headers_become_keys_and_other_slots_are_free(column, adopted, disk):
    header = CellHeader(bytes(32), disk.key(1), disk.key(0), 8192, 0)
    assert column.recover(adopted, 0, [None, header]) == [StoredKey(disk.key(1), disk.key(0))]
    assert adopted.slots.find(disk.key(1)) == 1
    assert adopted.slots.num_free == 1


def test_the_second_place_of_a_key_is_free(column, adopted, disk):
    header = CellHeader(bytes(32), disk.key(1), None, 8192, 0)
    column.recover(adopted, 0, [header])
    assert column.recover(adopted, 1, [header]) == []
    assert adopted.slots.find(disk.key(1)) == 0
    assert adopted.slots.num_free == 1


def test_a_slot_is_not_given_away_before_its_corrupt_cell_is_erased(
    column, cells, disk, monkeypatch
):
    """Or the header of what is written there next would be erased."""
    column.write(cells([1]), None)
    [slab] = column.space.slabs
    _damage(slab)
    erase = Slab.erase
    taken = []

    def watched(self, slot):
        column.forget([disk.key(1)])
        num_slots = len(self.slots)
        taken.extend(slot for _ in range(num_slots) for slot in self.slots.take(1))
        erase(self, slot)

    monkeypatch.setattr(Slab, "erase", watched)
    assert column.read(cells([1]), None) == [CORRUPT]
    assert sorted(taken) == list(range(1, len(slab.slots)))


def test_a_copy_that_was_stored_meanwhile_is_not_erased(column, cells, disk, monkeypatch):
    column.write(cells([1]), None)
    _damage(column.space.slabs[0])
    erase = Slab.erase

    def late(self, slot):
        column.forget([disk.key(1)])
        column.write(cells([1]), None)
        erase(self, slot)

    monkeypatch.setattr(Slab, "erase", late)
    assert column.read(cells([1]), None) == [CORRUPT]
    assert column.read(cells([1]), None) == [OK]


def _damage(slab):
    """Change a byte of the first payload."""
    content = bytearray(slab.path.read_bytes())
    content[2 * 4096] ^= 1
    slab.path.write_bytes(content)
