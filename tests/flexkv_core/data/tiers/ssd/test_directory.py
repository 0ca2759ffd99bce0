"""A directory that many share: caps, leftovers, and slabs that are never touched."""

import os

import pytest

from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.files import SlabFile
from flexkv_core.data.tiers.ssd.slab import Slab

KIB = 1024


@pytest.fixture
def owners():
    slabs = []
    yield slabs
    for slab in slabs:
        slab.close()


@pytest.fixture
def leave(tmp_path, disk):
    """Leave a slab of `num_slots` behind that was last used at `modified_s`."""

    def leave_slab(name, num_slots=4, modified_s=1000, **changes):
        directory = Directory(tmp_path, None, 0)
        superblock = disk.superblock(**changes)
        path = directory.make_folder(superblock) / f"{name}.slab"
        slab = Slab.create(path, superblock)
        slab.resize(num_slots)
        slab.close()
        os.utime(path, (modified_s, modified_s))
        return path

    return leave_slab


@pytest.fixture
def occupy(leave, disk, owners):
    """Make a slab that somebody uses."""

    def occupy_slab(name, **options):
        path = leave(name, **options)
        owners.append(Slab.adopt(path, disk.superblock(), 1 << 30))
        os.utime(path, (1, 1))
        return path

    return occupy_slab


def room(tmp_path, wanted, *, cap=None, leftovers=1 << 40):
    directory = Directory(tmp_path, cap, leftovers)
    with directory.locked():
        return directory.make_room(wanted)


def size(num_slots, disk):
    return 4096 + num_slots * disk.slot_bytes


def test_without_a_cap_there_is_as_much_room_as_is_wanted(tmp_path):
    assert room(tmp_path, 5000) == 5000


def test_there_is_never_more_than_the_file_system_may_give(tmp_path, monkeypatch):
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.directory.unreserved_bytes", lambda _: 300)
    assert room(tmp_path, 5000) == 300


def test_what_others_have_taken_of_the_reserve_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.directory.unreserved_bytes", lambda _: -300)
    assert room(tmp_path, 5000) == 0


def test_slabs_of_everybody_count_towards_the_cap(tmp_path, occupy, disk):
    occupy("a")
    cap = size(4, disk) + 1000
    assert room(tmp_path, 5000, cap=cap) == 1000


def test_a_cap_that_is_exceeded_gives_no_room(tmp_path, occupy):
    occupy("a")
    assert room(tmp_path, 5000, cap=1000) == 0


def test_leftovers_give_way_oldest_first_and_no_more_than_needed(tmp_path, leave, disk):
    old, young, middle = (leave(name, modified_s=at) for name, at in [("o", 1), ("y", 9), ("m", 5)])
    cap = 3 * size(4, disk)
    assert room(tmp_path, 2 * size(4, disk), cap=cap) == 2 * size(4, disk)
    assert [path.exists() for path in (old, middle, young)] == [False, False, True]


def test_leftovers_give_way_where_the_disk_is_full(tmp_path, leave, monkeypatch):
    paths = [leave("a", modified_s=1), leave("b", modified_s=2)]
    free = iter([0, 5000, 5000])
    monkeypatch.setattr(
        "flexkv_core.data.tiers.ssd.directory.unreserved_bytes", lambda _: next(free)
    )
    assert room(tmp_path, 5000) == 5000
    assert [path.exists() for path in paths] == [False, True]


def test_a_leftover_frees_its_room_at_once_so_that_no_more_are_deleted(
    tmp_path, leave, monkeypatch
):
    paths = [leave("a", modified_s=1), leave("b", modified_s=2)]
    opened = [os.open(path, os.O_RDONLY) for path in paths]  # what is open still takes room
    total = sum(path.stat().st_size for path in paths)
    monkeypatch.setattr(
        "flexkv_core.data.tiers.ssd.directory.unreserved_bytes",
        lambda _: total - sum(os.fstat(fd).st_size for fd in opened),
    )
    assert room(tmp_path, 1) == 1
    assert [path.exists() for path in paths] == [False, True]


def test_a_slab_in_use_is_never_deleted(tmp_path, occupy, leave):
    used, leftover = occupy("used"), leave("leftover")
    assert room(tmp_path, 1 << 20, cap=1000) == 0
    assert used.exists()
    assert not leftover.exists()


def test_temporary_and_broken_leftovers_go_at_once(tmp_path, leave):
    good = leave("good", modified_s=1)
    temporary = leave("temporary", is_temporary=True)
    broken = leave("broken")
    broken.write_bytes(bytes(100))
    room(tmp_path, 1)
    assert [path.exists() for path in (good, temporary, broken)] == [True, False, False]


def test_without_a_cap_leftovers_stay_up_to_their_limit(tmp_path, leave, disk):
    paths = [leave(str(age), modified_s=age) for age in range(1, 5)]
    room(tmp_path, 1, leftovers=2 * size(4, disk))
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_with_a_cap_leftovers_stay_as_long_as_nobody_needs_the_room(tmp_path, leave):
    path = leave("a")
    room(tmp_path, 1, cap=1 << 30, leftovers=0)
    assert path.exists()


def test_folders_go_with_the_last_slab(tmp_path, leave):
    path = leave("a", is_temporary=True)
    room(tmp_path, 1)
    assert not path.parent.parent.exists()


def test_other_files_are_left_alone(tmp_path, leave):
    slab = leave("a", is_temporary=True)
    strangers = [
        slab.with_suffix(".txt"),
        slab.parent / "sub" / "b.slab",
        tmp_path / "c.slab",
        tmp_path / "documents" / "heads-of-state.layers-x" / "d.slab",
    ]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("mine")
    room(tmp_path, 1 << 20, cap=1, leftovers=0)
    assert [stranger.read_text() for stranger in strangers] == ["mine"] * 4


def test_what_links_elsewhere_is_left_alone(tmp_path, leave):
    slab = leave("a")
    target = tmp_path / "target"
    target.write_text("mine")
    slab.unlink()
    slab.symlink_to(target)
    room(tmp_path, 1 << 20, cap=1)
    assert target.read_text() == "mine"


def test_all_files_are_closed_afterwards(tmp_path, leave, open_files):
    leave("a")
    leave("b", is_temporary=True)
    before = open_files()
    room(tmp_path, 1)
    assert not open_files() - before


@pytest.mark.parametrize("cap", [None, 1])
def test_leftovers_are_opened_one_at_a_time(tmp_path, leave, monkeypatch, cap, open_files):
    """Thousands that are open at once leave no descriptor to the engine."""
    paths = [leave(str(number)) for number in range(50)]
    before, most_open = open_files(), 0
    opened = os.open

    def count(*arguments):
        nonlocal most_open
        fd = opened(*arguments)
        most_open = max(most_open, len(open_files() - before))
        return fd

    monkeypatch.setattr(os, "open", count)
    room(tmp_path, 1, cap=cap)
    assert most_open <= 3  # the directory's lock, the leftover, and the folder that is listed
    assert [path.exists() for path in paths] == [cap is None] * 50


def test_a_leftover_that_was_taken_meanwhile_stays(tmp_path, leave, monkeypatch):
    """By who repairs slabs: that needs only the lock of the slab itself."""
    path = leave("a")
    take, taken = SlabFile.take, []

    def take_once(path):
        return None if taken else taken.append(path) or take(path)

    monkeypatch.setattr(SlabFile, "take", take_once)
    assert room(tmp_path, 5000, cap=5000) == 0
    assert path.exists()


def test_a_directory_that_is_a_file_cannot_be_locked(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(FileExistsError), Directory(path, None, 0).locked():
        pass


def test_leftovers_of_one_superblock_are_deleted_alone(tmp_path, leave, occupy, disk):
    gone = [leave("a"), leave("b")]
    kept = [occupy("used"), leave("other", generation="other")]
    Directory(tmp_path, None, 0).delete_leftovers(disk.superblock())
    assert [path.exists() for path in gone + kept] == [False, False, True, True]
