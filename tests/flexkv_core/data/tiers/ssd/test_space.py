"""Where slots come from: quota, growth, adoption, directories that fail and come back."""

import errno
import itertools
import os
import resource
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.data.tiers.ssd.directory import Directory
from flexkv_core.data.tiers.ssd.slab import Slab
from flexkv_core.data.tiers.ssd.space import Space
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock

RETRY_S = 60
SLOT_BYTES = 4096 + 8192


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def make(disk, tmp_path, clock):
    """Open spaces; they are closed in the end."""
    spaces = []

    def make_space(num_slots=10, *, directories=1, cap=None, engine_id="engine", quota=None):
        if isinstance(directories, int):
            directories = [tmp_path / str(number) for number in range(directories)]
        spaces.append(
            Space(
                [Directory(path, cap, 0) for path in directories],
                disk.superblock(),
                4096 + num_slots * disk.slot_bytes if quota is None else quota,
                engine_id,
                clock,
            )
        )
        return spaces[-1]

    yield make_space
    for space in spaces:
        space.close()


def take_all(space):
    """Take slots one by one until there is no more room; return how many there were."""
    return sum(1 for _ in itertools.takewhile(bool, (space.take(1) for _ in itertools.count())))


def files(path):
    return sorted(path.rglob("*.slab"))


def total(path):
    return sum(file.stat().st_size for file in files(path))


def test_nothing_is_made_before_it_is_needed(make, tmp_path):
    assert make(10).num_slots == 10
    assert files(tmp_path) == []


def test_slots_of_a_run_lie_together(make):
    slab, slots = make(10).take(4)
    assert slots == range(4)
    assert len(slab.slots) == 10


def test_it_grows_in_steps_to_its_quota(make, tmp_path, disk, small_steps):
    space = make(10)
    sizes = [total(tmp_path) for _ in range(10) if space.take(1)]
    assert sizes == [4096 + n * disk.slot_bytes for n in [4] * 4 + [8] * 4 + [10] * 2]
    assert space.take(1) is None


@pytest.mark.parametrize("num_directories", [1, 2, 3])
def test_all_that_was_promised_can_be_taken(make, small_steps, num_directories):
    space = make(20, directories=num_directories)
    promised = space.num_slots
    assert promised in (19, 20)
    assert take_all(space) == promised


def test_directories_are_taken_in_turn(make, small_steps):
    space = make(20, directories=2)
    slabs = [space.take(2)[0] for _ in range(4)]
    assert [slabs.count(slab) for slab in space.slabs] == [2, 2]


def test_slots_that_nobody_published_are_free_again(make):
    space = make(1)
    space.unpin(*space.take(1))
    assert space.take(1) is not None


def test_room_that_is_taken_away_can_be_given_back(make, disk, tmp_path, small_steps):
    space = make(20)
    space.take(4)
    space.resize(4096 + 8 * disk.slot_bytes)
    assert space.num_slots == 8
    assert take_all(space) == 4
    assert total(tmp_path) == 4096 + 8 * disk.slot_bytes
    space.resize(4096 + 12 * disk.slot_bytes)
    assert take_all(space) == 4


def test_slabs_beyond_less_room_are_left_and_the_oldest_stays(make, disk, small_steps):
    space = make(16, directories=2)
    taken = [space.take(4) for _ in range(2)]
    for slab, slots in taken:
        space.unpin(slab, slots)
    oldest, newest = space.slabs
    space.resize(4096 + 2 * disk.slot_bytes)
    assert space.slabs == (oldest,)
    assert newest.is_retired
    assert newest.path.exists()


def test_less_room_cuts_the_end_off_a_slab_and_the_rest_stays(make, disk, tmp_path):
    space = make(10)
    slab, slots = space.take(10)
    for slot in slots:
        slab.slots.publish(disk.key(slot), slot)
    space.unpin(slab, slots)
    space.resize(4096 + 10 * disk.slot_bytes - 1)
    assert space.slabs == (slab,)
    assert [slab.slots.find(disk.key(slot)) for slot in slots] == [*range(9), None]
    assert total(tmp_path) == slab.size == 4096 + 9 * disk.slot_bytes
    assert space.num_slots == 9


def test_a_slab_whose_end_is_in_use_is_left_whole(make, disk):
    space = make(10)
    slab, slots = space.take(10)
    space.resize(4096 + 9 * disk.slot_bytes)
    assert space.slabs == ()
    assert slab.path.stat().st_size == 4096 + 10 * disk.slot_bytes
    space.unpin(slab, slots)


def test_a_slab_that_cannot_be_cut_is_left(make, disk, monkeypatch):
    space = make(10)
    slab, slots = space.take(10)
    space.unpin(slab, slots)

    def refuse(_):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(slab, "resize", refuse)
    space.resize(4096 + 9 * disk.slot_bytes)
    assert space.slabs == ()


@given(
    st.integers(0, 1 << 20),
    st.integers(1, 3),
    st.none() | st.integers(0, 1 << 20),
    st.lists(st.integers(1, 8), max_size=30),
)
def test_quota_and_cap_are_never_exceeded(tmp_path_factory, superblock, quota, number, cap, runs):
    path = tmp_path_factory.mktemp("quota")
    directories = [Directory(path / str(index), cap, 0) for index in range(number)]
    spaces = [Space(directories, superblock, quota, name, ManualClock()) for name in ("a", "b")]
    for num_slots in runs:
        for space in spaces:
            space.take(num_slots)
            assert sum(slab.size for slab in space.slabs) <= quota
        for directory in directories:
            assert cap is None or total(directory.path) <= cap
    assert total(path) == sum(slab.size for space in spaces for slab in space.slabs)
    for space in spaces:
        space.close()
    shutil.rmtree(path)


@given(st.lists(st.integers(0, 12), max_size=6), st.integers(0, 40), st.integers(-5000, 5000))
def test_adoption_stays_within_the_quota(tmp_path_factory, superblock, left, num_slots, extra):
    path = tmp_path_factory.mktemp("adopt")
    directory = Directory(path, None, 0)
    folder = directory.make_folder(superblock)
    for index, slots in enumerate(left):
        slab = Slab.create(folder / f"{index}.slab", superblock)
        slab.resize(slots)
        slab.close()
    quota = max(0, num_slots * SLOT_BYTES + extra)
    space = Space([directory], superblock, quota, "e", ManualClock())
    space.adopt()
    sizes = [slab.size for slab in space.slabs]
    assert sum(sizes) <= quota
    assert sizes == [slab.path.stat().st_size for slab in space.slabs]
    assert sum(len(slab.slots) for slab in space.slabs) <= space.num_slots
    assert quota - sum(sizes) < 4096 + SLOT_BYTES or len(sizes) == len(left)
    space.close()
    shutil.rmtree(path)


def leave_slabs(make, number):
    """Leave `number` slabs of 10 slots, made by as many engines."""
    spaces = [make(10, engine_id=f"engine {index}") for index in range(number)]
    for space in spaces:
        space.unpin(*space.take(1))
    for space in spaces:
        space.close()


def adopted(space):
    space.adopt()
    return {slab.path.name: len(slab.slots) for slab in space.slabs}


def test_slabs_of_earlier_processes_are_adopted(make):
    leave_slabs(make, 3)
    assert list(adopted(make(100, engine_id="x")).values()) == [10, 10, 10]


def test_the_first_slab_that_is_too_large_is_cut(make, disk):
    leave_slabs(make, 3)
    space = make(quota=2 * 4096 + 15 * disk.slot_bytes, engine_id="x")
    assert list(adopted(space).values()) == [10, 5]
    assert space.num_slots == 15


def test_all_ranks_of_an_engine_choose_alike_and_other_engines_differently(make):
    leave_slabs(make, 4)
    choices = []
    for engine_id in [*"abcdefgh", *"abcdefgh"]:
        space = make(10, engine_id=engine_id)
        choices.append(next(iter(adopted(space))))
        space.close()
    assert choices[:8] == choices[8:]
    assert len(set(choices)) > 1


def test_of_very_many_slabs_only_some_are_opened(make, monkeypatch):
    leave_slabs(make, 6)
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.space._MAX_ADOPTED", 4)
    assert len(adopted(make(100, engine_id="x"))) == 4


def test_open_files_are_counted_once_however_many_slabs_there_are(make, monkeypatch):
    leave_slabs(make, 6)
    space, asked = make(100, engine_id="x"), []
    monkeypatch.setattr(
        "flexkv_core.data.tiers.ssd.space.num_spare_files", lambda: asked.append(1) or 4
    )
    assert (len(adopted(space)), len(asked)) == (4, 1)


def test_half_of_the_files_that_a_process_may_open_are_not_ours(make, monkeypatch, open_files):
    leave_slabs(make, 6)
    space = make(100, engine_id="x")
    limit = 2 * (len(open_files()) + 4)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert len(adopted(space)) == 3


def test_a_process_that_can_open_no_file_finds_no_room_and_later_some(make, limit_files, clock):
    space = make(10)
    limit_files(0)
    assert space.take(1) is None
    limit_files(100)
    clock.advance(RETRY_S)
    assert space.take(1) is not None


def test_an_adopted_slab_grows_on(make, tmp_path):
    leave_slabs(make, 1)
    space = make(20, engine_id="engine 0")
    space.adopt()
    assert space.take(1) is not None
    assert len(files(tmp_path)) == 1
    assert len(space.slabs[0].slots) == 20


def test_a_name_that_is_taken_is_not_the_end(make, tmp_path):
    assert make(10).take(1)
    assert make(10).take(1)
    assert len(files(tmp_path)) == 2


def test_all_ranks_of_an_engine_name_slabs_alike(make, tmp_path):
    make(10, directories=[tmp_path / "a"]).take(1)
    make(10, directories=[tmp_path / "b"]).take(1)
    first, second = files(tmp_path)
    assert first.name == second.name


def fail(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_takes_the_rest_of_the_capacity(make, monkeypatch, small_steps):
    space = make(10)
    space.take(4)
    monkeypatch.setattr("os.posix_fallocate", fail)
    assert space.take(1) is None
    assert space.num_slots == 4


def test_a_full_disk_is_tried_again_later(make, monkeypatch, small_steps, clock):
    space = make(10)
    space.take(4)
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", fail)
        space.take(1)
    clock.advance(RETRY_S - 1)
    assert space.take(1) is None
    clock.advance(1)
    assert take_all(space) == 6
    assert space.num_slots == 10


def test_what_failed_is_promised_one_slot_to_be_tried_with(make, monkeypatch, small_steps, clock):
    """A promise of all that may be would fail again and again, for all who rely on it."""
    space = make(10)
    space.take(4)
    monkeypatch.setattr("os.posix_fallocate", fail)
    space.take(1)
    clock.advance(RETRY_S)
    assert space.num_slots == 5


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "lower ssd_cache_gb"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EROFS, "mount it writable"),
    ],
)
def test_a_full_disk_is_told_once_when_it_begins_and_once_when_it_ends(
    make, monkeypatch, caplog, clock, tmp_path, code, advice
):
    space = make(10)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", refuse)
        for _ in range(3):
            space.take(1)
            clock.advance(RETRY_S)
    [begin] = [line for line in caplog.messages if "ssd.no_room" in line]
    assert str(tmp_path / "0") in begin
    assert os.strerror(code) in begin
    assert advice in begin
    take_all(space)
    [end] = [line for line in caplog.messages if "ssd.has_room" in line]
    assert str(tmp_path / "0") in end


def test_a_disk_with_room_is_not_mentioned(make, caplog, small_steps):
    take_all(make(10))
    assert "room" not in caplog.text


def test_columns_that_share_a_directory_tell_once_that_it_is_full(disk, monkeypatch, caplog):
    monkeypatch.setattr("os.posix_fallocate", fail)
    rank = disk.open(columns=disk.columns)
    rank.write(range(3))
    assert caplog.text.count("ssd.no_room") == 1
    assert rank.tier.take_counts()["ssd_no_room_cells"] == 6


def test_a_directory_that_fails_leaves_its_part_to_the_others(make, tmp_path, small_steps):
    blocked = tmp_path / "blocked"
    blocked.touch()
    space = make(10, directories=[blocked, tmp_path / "good"])
    assert take_all(space) == 10
    assert {slab.path.parents[2].name for slab in space.slabs} == {"good"}


def test_a_slab_that_was_deleted_is_replaced(make, tmp_path):
    space = make(10)
    space.take(1)
    shutil.rmtree(tmp_path / "0")
    space.drop_lost()
    assert space.slabs == ()
    assert space.num_slots == 10
    assert space.take(1) is not None
    assert len(files(tmp_path)) == 1


def test_the_lock_is_not_held_while_the_disk_is_asked(make, monkeypatch):
    """A disk that is stuck would stop whoever only wants to look up a key."""
    space = make(10)
    space.take(1)
    were_locked = []

    def is_lost(_):
        were_locked.append(space.lock.locked())
        return False

    monkeypatch.setattr(Slab, "is_lost", property(is_lost))
    space.drop_lost()
    assert were_locked == [False]


def test_a_folder_that_cannot_be_listed_is_adopted_from_by_nobody(make, monkeypatch, caplog):
    def fail_to_list(*_):
        raise OSError(5, "Input/output error")

    space = make(10)
    monkeypatch.setattr("pathlib.Path.glob", fail_to_list)
    space.adopt()
    assert space.slabs == ()
    assert "Input/output error" in caplog.text


def test_a_slab_in_use_is_closed_by_its_last_call(make, tmp_path, disk):
    space = make(10)
    slab, slots = space.take(1)
    space.close()
    [path] = files(tmp_path)
    assert Slab.adopt(path, disk.superblock(), 1 << 30) is None
    space.unpin(slab, slots)
    adopted = Slab.adopt(path, disk.superblock(), 1 << 30)
    assert adopted is not None
    adopted.close()


def test_there_is_no_room_after_the_end(make, tmp_path):
    space = make(10)
    space.close()
    assert space.take(1) is None
    assert files(tmp_path) == []


def test_steps_are_a_64th_of_the_quota_within_limits(make, disk):
    mib = 1 << 20
    for quota, expected in [(1 << 30, 64 * mib), (16 << 30, 256 * mib), (1 << 40, 1024 * mib)]:
        step = make(quota=quota)._step_slots * disk.slot_bytes
        assert expected - disk.slot_bytes < step <= expected


def test_a_directory_that_fails_costs_the_room_of_no_other(disk, small_steps):
    rank = disk.open(directories=[disk.path / "a", disk.path / "b"])
    before = rank.tier.capacity_blocks
    (disk.path / "b" / ".lock").unlink()
    (disk.path / "b" / ".lock").mkdir()
    assert rank.write([0]) == [Status.OK]
    assert rank.tier.capacity_blocks >= before - 1


def test_a_retired_slab_stays_open_until_its_last_user_has_ended(disk):
    rank = disk.open()
    rank.write([0])
    (column,) = rank.tier._columns
    slab, first = column.space.take(1)
    same, second = column.space.take(1)
    assert same is slab
    column.space.retire([slab])
    column.space.unpin(slab, first)
    assert slab.is_lost is False
    column.space.unpin(slab, second)
    assert slab.is_lost, "its descriptor is closed"


def test_slabs_that_were_retired_or_never_adopted_are_deleted_with_all_others(make, tmp_path):
    leave_slabs(make, 3)
    space = make(20)
    space.adopt()
    assert len(files(tmp_path)) > len(space.slabs) > 1
    space.retire(space.slabs[:1])
    space.unlink()
    assert files(tmp_path) == []


def test_a_retired_slab_that_is_still_read_is_deleted_with_all_others(make, tmp_path):
    space = make(10)
    slab, slots = space.take(1)
    space.retire([slab])
    space.unlink()
    assert files(tmp_path) == []
    assert os.fstat(slab._file.fd).st_nlink == 0, "it stays open for its last call"
    space.unpin(slab, slots)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(slab._file.fd)


def test_where_leftovers_cannot_be_looked_for_it_is_told_what_to_delete(make, monkeypatch, caplog):
    space = make()
    space.take(1)
    with monkeypatch.context() as patch:
        patch.setattr("flexkv_core.data.tiers.ssd.directory.folder_lock", fail)
        space.unlink()
    [slab] = space.slabs
    assert f"ssd.not_deleted path={slab.folder / '*.slab'}: No space" in caplog.text
