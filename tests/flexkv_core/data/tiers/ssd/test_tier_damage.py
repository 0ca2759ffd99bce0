"""Whatever happens to the files, no wrong byte is ever served: `Rank.read` compares every one.

Each case damages slabs of 100 blocks between two processes, or under a running one.
"""

import random
import shutil
import signal
import subprocess
import sys

import msgspec
import pytest

from flexkv_core.data.tiers.ssd.format import slot_bytes
from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status
NUM_BLOCKS = 100
PAGE = 4096
USED_HEADER_BYTES = 128

WRITER = """
import runpy, sys
from pathlib import Path

conftest = runpy.run_path(sys.argv[1])
rank = conftest["Disk"](Path(sys.argv[2])).open()
for first in range(0, 4000, 8):
    rank.write(range(first, first + 8))
    print(first + 8, flush=True)
"""
"""Says how many blocks are stored."""


@pytest.fixture
def randomly():
    return random.Random(0)


@pytest.fixture
def full(disk):
    """Store 100 blocks, and return where in the slab each of them is."""
    disk.store(range(NUM_BLOCKS))
    [slab] = disk.slabs()
    content = slab.read_bytes()
    return {number: content.index(disk.key(number), PAGE) - 40 for number in range(NUM_BLOCKS)}


def change(path, offset, replace):
    """Replace the byte at `offset`."""
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([replace(byte)]))


def flip(randomly):
    return lambda byte: byte ^ (1 << randomly.randrange(8))


@pytest.mark.parametrize("when", ["between processes", "while running"])
def test_blocks_with_a_flipped_header_byte_are_gone(disk, full, randomly, when):
    [slab] = disk.slabs()
    running = disk.open() if when == "while running" else None
    for place in full.values():
        change(slab, place + randomly.randrange(USED_HEADER_BYTES), flip(randomly))
    rank = running or disk.open()
    statuses = rank.read(range(NUM_BLOCKS))
    assert set(statuses) == {CORRUPT if running else MISS}
    assert rank.tier.take_counts().get("ssd_corrupt_blocks", 0) == statuses.count(CORRUPT)


def test_a_flipped_byte_that_no_header_uses_harms_nothing(disk, full, randomly):
    for place in full.values():
        change(disk.slabs()[0], place + randomly.randrange(USED_HEADER_BYTES, PAGE), flip(randomly))
    assert set(disk.open().read(range(NUM_BLOCKS))) == {OK}


@pytest.mark.parametrize("when", ["between processes", "while running"])
def test_blocks_with_a_flipped_payload_byte_are_corrupt(disk, full, randomly, when):
    [slab] = disk.slabs()
    running = disk.open() if when == "while running" else None
    for place in full.values():
        change(slab, place + PAGE + randomly.randrange(disk.cell_bytes), flip(randomly))
    rank = running or disk.open()
    assert rank.read(range(NUM_BLOCKS)) == [CORRUPT] * NUM_BLOCKS
    assert rank.tier.take_counts()["ssd_corrupt_blocks"] == NUM_BLOCKS
    assert rank.read(range(NUM_BLOCKS)) == [MISS] * NUM_BLOCKS


def test_corrupt_blocks_can_be_stored_again(disk, full):
    for place in full.values():
        change(disk.slabs()[0], place + PAGE, lambda byte: byte ^ 1)
    rank = disk.open()
    rank.read(range(NUM_BLOCKS))
    assert set(rank.write(range(NUM_BLOCKS)) + rank.read(range(NUM_BLOCKS))) == {OK}


class TestCorruptCellsOverRestarts:
    """A slab may hold a second copy of what was found corrupt and stored again."""

    NUM_STARTS = 4

    @pytest.fixture
    def num_corrupt(self, disk, full, randomly):
        """Corrupt all payloads, and return how many blocks each of some starts finds corrupt."""
        for place in full.values():
            change(disk.slabs()[0], place + PAGE + 77, lambda byte: byte ^ 1)

        def count():
            return [self._start(disk, randomly) for _ in range(self.NUM_STARTS)]

        return count

    @staticmethod
    def _start(disk, randomly):
        """Read everything as an engine would, in any order, and store again what could not be."""
        rank = disk.open()
        numbers = randomly.sample(range(NUM_BLOCKS), NUM_BLOCKS)
        num_corrupt = 0
        for first in range(0, NUM_BLOCKS, 8):
            some = numbers[first : first + 8]
            bad = [n for n, status in zip(some, rank.read(some), strict=True) if status is not OK]
            num_corrupt += len(bad)
            rank.write(reversed(bad))
        rank.close()
        return num_corrupt

    def test_a_block_is_corrupt_once(self, num_corrupt):
        assert num_corrupt() == [NUM_BLOCKS] + [0] * (self.NUM_STARTS - 1)

    def test_if_nothing_were_erased_it_would_be_so_again(self, num_corrupt, monkeypatch):
        monkeypatch.setattr("flexkv_core.data.tiers.ssd.slab.Slab.erase", lambda *_: None)
        assert sum(num_corrupt()[1:]) > 0


def test_only_the_column_that_is_corrupt_is_erased(disk):
    """Another degree of parallelism may use the others."""
    disk.store(range(4), columns=disk.columns)
    [slab] = (path for path in disk.slabs() if "heads-1-1" in str(path))
    change(slab, slab.read_bytes().index(disk.key(2), PAGE) - 40 + PAGE, lambda byte: byte ^ 1)
    rank = disk.open(columns=disk.columns)
    assert rank.read(range(4)) == [OK, OK, CORRUPT, OK]
    rank.close()
    for column, found in zip(disk.columns, ([0, 1, 2, 3], [0, 1, 3]), strict=True):
        assert disk.open(columns=[column]).recovered() == found


@pytest.mark.parametrize("when", ["between processes", "while running"])
def test_truncated_slabs_hold_what_is_left_of_them(disk, full, randomly, when):
    [slab] = disk.slabs()
    running = disk.open() if when == "while running" else None
    size = slab.stat().st_size
    for _ in range(NUM_BLOCKS):
        size = randomly.randrange(size * 9 // 10, size)
        with slab.open("r+b") as file:
            file.truncate(size)
        rank = running or disk.open()
        whole = [number for number, at in full.items() if at + disk.slot_bytes <= size]
        statuses = rank.read(range(NUM_BLOCKS))
        assert {number for number, status in enumerate(statuses) if status is OK} == set(whole)
        assert set(statuses) <= {OK, MISS, CORRUPT}
        if not running:
            rank.close()


def test_swapped_slabs_of_two_columns_are_no_hits(disk):
    disk.store(range(NUM_BLOCKS), columns=disk.columns)
    first, second = disk.slabs()
    between = first.with_suffix(".tmp")
    first.rename(between)
    second.rename(first)
    between.rename(second)
    assert set(disk.open(columns=disk.columns).read(range(NUM_BLOCKS))) == {MISS}


def test_a_slab_of_another_namespace_is_no_hit(disk):
    disk.store(range(NUM_BLOCKS))
    other = msgspec.structs.replace(disk.namespace, model="other")
    [slab] = disk.slabs()
    moved = disk.path / other.short / slab.parent.name / slab.name
    moved.parent.mkdir(parents=True)
    slab.rename(moved)
    rank = disk.open(namespace=other)
    assert rank.recovered() == []
    assert set(rank.read(range(NUM_BLOCKS))) == {MISS}


@pytest.mark.parametrize("foreign", ["namespace", "column"])
@pytest.mark.parametrize("when", ["between processes", "while running"])
def test_cells_of_another_namespace_or_column_are_no_hits(disk, full, foreign, when):
    """Copied over the right ones, whole and with the right keys."""
    other = msgspec.structs.replace(disk.namespace, model="other")
    source = {"namespace": {"namespace": other}, "column": {"columns": disk.columns[1:]}}[foreign]
    [slab] = disk.slabs()
    disk.store(range(NUM_BLOCKS), **source)
    [donor] = set(disk.slabs()) - {slab}
    running = disk.open() if when == "while running" else None
    with slab.open("r+b") as file:
        file.seek(PAGE)
        file.write(donor.read_bytes()[PAGE:])
    rank = running or disk.open()
    assert set(rank.read(range(NUM_BLOCKS))) == {CORRUPT if running else MISS}


def test_cells_in_each_others_places_are_found_where_they_are(disk, full):
    """A cell says what it is: a restart finds it anywhere, a running process trusts no place."""
    [slab] = disk.slabs()
    running = disk.open()
    content = slab.read_bytes()
    slots = [
        content[at : at + disk.slot_bytes] for at in range(PAGE, len(content), disk.slot_bytes)
    ]
    slab.write_bytes(content[:PAGE] + b"".join(reversed(slots)))
    assert set(running.read(range(NUM_BLOCKS))) == {CORRUPT}
    running.close()
    assert set(disk.open(engine_id="next").read(range(NUM_BLOCKS))) == {OK}


def test_deleted_slabs_are_misses_after_a_restart(disk, full):
    disk.slabs()[0].unlink()
    rank = disk.open()
    assert set(rank.read(range(NUM_BLOCKS))) == {MISS}
    assert set(rank.write(range(NUM_BLOCKS)) + rank.read(range(NUM_BLOCKS))) == {OK}


def test_a_directory_that_is_removed_while_running_is_made_again(disk):
    rank = disk.open()
    rank.write(range(8))
    shutil.rmtree(disk.path)
    assert rank.read(range(8)) == [MISS] * 8
    assert rank.write(range(4)) == rank.read(range(4)) == [OK] * 4
    rank.close()
    assert disk.open().recovered() == list(range(4))


def test_a_directory_that_cannot_be_made_again_is_no_exception(disk):
    rank = disk.open()
    rank.write(range(8))
    shutil.rmtree(disk.path)
    disk.path.write_text("in the way")
    assert rank.read(range(8)) == [MISS] * 8
    assert rank.write(range(8)) == [ERROR] * 8
    assert rank.tier.capacity_blocks == 0
    disk.path.unlink()
    rank.clock.advance(3600)
    assert rank.write(range(8)) == rank.read(range(8)) == [OK] * 8


@pytest.mark.parametrize("num_pages", range(1, 3))
def test_a_torn_write_is_no_hit(disk, full, num_pages):
    """New header, but payload only in part: what was in the slot before shows through."""
    [slab] = disk.slabs()
    source = disk.open(directories=[disk.path.parent / "other"])
    source.write([500])
    source.close()
    [donor] = (disk.path.parent / "other").rglob("*.slab")
    with slab.open("r+b") as file:
        file.seek(full[7])
        file.write(donor.read_bytes()[PAGE:][: num_pages * PAGE])
    rank = disk.open()
    assert rank.read([7, 500]) == [MISS, CORRUPT]


@pytest.mark.parametrize("round_number", range(3))
def test_a_killed_process_leaves_every_block_that_it_had_stored(disk, round_number):
    """SIGKILL wherever it happens to be: nothing is flushed, unlocked or tidied up."""
    conftest = sys.modules[type(disk).__module__].__file__
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, conftest, str(disk.path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [child.stdout.readline() for _ in range(5 + 20 * round_number)]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    stored = range(int(lines[-1]))
    rank = disk.open()
    assert set(rank.recovered()) >= set(stored)
    assert set(rank.read(stored)) == {OK}
    assert set(rank.read(range(stored.stop, stored.stop + 16))) <= {OK, MISS, CORRUPT}


def test_padding_of_odd_cells_is_nobodys_business(disk):
    disk.store(range(4), cell_bytes=1000)
    [slab] = disk.slabs()
    place = slab.read_bytes().index(disk.key(2), PAGE) - 40
    change(slab, place + slot_bytes(1000) - 1, lambda byte: byte ^ 1)
    assert disk.open(cell_bytes=1000).read(range(4)) == [OK] * 4
