"""One slab: cells in slots, and who may have it."""

import mmap
import os

import pytest

from flexkv_core.data.tiers.ssd.slab import Cell, Slab, max_run_cells
from flexkv_core.plan import Status

OK, CORRUPT = Status.OK, Status.CORRUPT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.slab"


@pytest.fixture
def slab(path, superblock):
    slab = Slab.create(path, superblock)
    slab.resize(4)
    yield slab
    slab.close()


@pytest.fixture
def cell(disk):
    def make(number, fill=b"?"):
        place = memoryview(mmap.mmap(-1, disk.cell_bytes))
        place[:] = fill * (len(place) // len(fill))
        return Cell(disk.key(number), None, (place,))

    return make


def test_cells_come_back_from_where_they_were_written(slab, cell):
    slab.write(1, [cell(1, b"a"), cell(2, b"b")])
    targets = [cell(1), cell(2)]
    assert slab.read(1, targets) == [OK, OK]
    assert [bytes(target.pieces[0][:2]) for target in targets] == [b"aa", b"bb"]


def test_a_write_touches_no_other_slot(slab, path, disk, cell):
    before = path.read_bytes()
    slab.write(1, [cell(1, b"a")])
    after = path.read_bytes()
    first, last = slab.size_with(1), slab.size_with(2)
    assert (after[:first], after[last:]) == (before[:first], before[last:])
    assert after[first:last] != before[first:last]


def test_another_key_in_the_slot_is_corrupt(slab, cell):
    slab.write(0, [cell(1, b"a")])
    assert slab.read(0, [cell(2)]) == [CORRUPT]


def test_a_slot_that_was_never_written_is_corrupt(slab, cell):
    assert slab.read(3, [cell(1)]) == [CORRUPT]


def test_a_cell_that_was_erased_is_corrupt_and_no_other_is_touched(slab, path, cell):
    slab.write(0, [cell(1, b"a"), cell(2, b"b"), cell(3, b"c")])
    before = path.read_bytes()
    slab.erase(1)
    first, last = slab.size_with(1), slab.size_with(1) + 4096
    assert path.read_bytes() == before[:first] + bytes(4096) + before[last:]
    assert slab.read(0, [cell(1), cell(2), cell(3)]) == [OK, CORRUPT, OK]


def test_a_cell_of_another_column_is_corrupt(slab, tmp_path, disk, cell):
    other = Slab.create(tmp_path / "b.slab", disk.superblock(disk.columns[1]))
    other.resize(1)
    other.write(0, [cell(1, b"a")])
    content = other.path.read_bytes()[4096:]
    other.close()
    with slab.path.open("r+b") as file:
        file.seek(4096)
        file.write(content)
    assert slab.read(0, [cell(1)]) == [CORRUPT]


def test_what_lies_behind_the_end_of_the_file_is_corrupt(slab, path, cell):
    """Although the header that the thread read last would fit, and so would the payload."""
    slab.write(0, [cell(1, b"a"), cell(2, b"b")])
    targets = [cell(1), cell(2)]
    slab.read(0, targets)
    with path.open("r+b") as file:
        file.truncate(slab.size_with(1))
    assert slab.read(0, targets) == [OK, CORRUPT]


@pytest.mark.parametrize("num_pieces", [1, 2, 8])
def test_the_longest_run_fits_one_call(slab, cell, disk, num_pieces):
    size = disk.cell_bytes // num_pieces

    def in_pieces(number):
        whole = cell(number, b"a")
        pieces = [whole.pieces[0][at : at + size] for at in range(0, disk.cell_bytes, size)]
        return Cell(whole.key, whole.parent, pieces)

    num_cells = max_run_cells([in_pieces(0)])
    slab.resize(num_cells)
    cells = [in_pieces(number) for number in range(num_cells)]
    slab.write(0, cells)
    assert set(slab.read(0, cells)) == {OK}


def test_a_cell_in_pieces_is_the_same_on_the_disk(slab, cell):
    whole = cell(1, b"ab")
    (content,) = whole.pieces
    slab.write(0, [Cell(whole.key, whole.parent, [content[:1000], content[1000:]])])
    target = cell(1)
    assert slab.read(0, [target]) == [OK]
    assert target.pieces[0] == content


def test_only_headers_of_its_column_are_believed(slab, disk, cell):
    slab.write(0, [cell(1, b"a")])
    page = slab.path.read_bytes()[4096:8192]
    assert slab.header_of(page).key == disk.key(1)
    assert slab.header_of(bytes(4096)) is None


def test_a_name_that_is_taken_makes_no_slab(slab, path, superblock):
    assert Slab.create(path, superblock) is None


def test_a_slab_that_cannot_be_written_is_not_left_behind(path, superblock, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pwritev", fail)
    with pytest.raises(OSError, match="Input/output"):
        Slab.create(path, superblock)
    assert not path.exists()


@pytest.fixture
def left(path, superblock, cell):
    """Leave a slab of four slots, with a cell in the first, as a process that has ended."""
    slab = Slab.create(path, superblock)
    slab.resize(4)
    slab.write(0, [cell(1, b"a")])
    slab.close()
    return path


def test_it_is_adopted_with_its_slots(left, superblock, cell):
    slab = Slab.adopt(left, superblock, 1 << 30)
    assert len(slab.slots) == 4
    assert slab.read(0, [cell(1)]) == [OK]
    slab.close()


@pytest.mark.parametrize("extra_bytes", [-1, 0, 4095])
def test_slots_beyond_what_is_allowed_are_cut_off(left, superblock, disk, extra_bytes):
    max_bytes = 4096 + 2 * disk.slot_bytes + extra_bytes
    slab = Slab.adopt(left, superblock, max_bytes)
    num_slots = 2 if extra_bytes >= 0 else 1
    assert len(slab.slots) == num_slots
    assert left.stat().st_size == slab.size == 4096 + num_slots * disk.slot_bytes
    slab.close()


def test_a_slot_that_is_not_whole_is_cut_off(left, superblock, disk):
    with left.open("r+b") as file:
        file.truncate(4096 + 3 * disk.slot_bytes + 100)
    slab = Slab.adopt(left, superblock, 1 << 30)
    assert len(slab.slots) == 3
    slab.close()


@pytest.mark.parametrize("change", ["column", "temporary", "damaged", "empty"])
def test_what_is_something_else_is_neither_adopted_nor_changed(left, superblock, disk, change):
    page = superblock.pack()
    pages = {
        "column": disk.superblock(disk.columns[1]).pack(),
        "temporary": disk.superblock(is_temporary=True).pack(),
        "damaged": page[:30] + bytes([page[30] ^ 1]) + page[31:],
        "empty": b"",
    }
    left.write_bytes(pages[change])
    assert Slab.adopt(left, superblock, 1 << 30) is None
    assert left.read_bytes() == pages[change]


def test_adoption_makes_it_young(left, superblock):
    os.utime(left, (1, 1))
    slab = Slab.adopt(left, superblock, 1 << 30)
    assert left.stat().st_mtime > 1
    slab.close()


def test_room_that_cannot_be_had_changes_nothing(slab, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    size = slab.size
    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(OSError, match="No space"):
        slab.resize(100)
    assert slab.size == size == slab.path.stat().st_size


def test_it_knows_that_it_was_deleted(slab, path):
    path.unlink()
    assert slab.is_lost
