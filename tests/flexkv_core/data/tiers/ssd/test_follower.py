"""A tier that reads what another has written: everything that it finds, and never wrong bytes."""

import signal
import subprocess
import sys
import threading

import pytest

from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status

WRITER = """
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
conftest = SourceFileLoader("rig", sys.argv[1]).load_module()
rank = conftest.Disk(Path(sys.argv[2])).lead()
for number in range(10 ** 6):
    assert rank.write([number]) == [0]
    print(number, flush=True)
    if number == 11:
        sys.stdin.readline()
"""


@pytest.fixture(params=[1, 2], ids=["one column", "two columns"])
def columns(request, disk):
    return disk.columns[: request.param]


@pytest.fixture
def pair(disk, columns):
    """A writer and its follower."""
    return disk.lead(columns=columns), disk.follow(columns=columns)


def test_what_is_written_is_found_and_read(pair):
    writer, follower = pair
    writer.write(range(20))
    assert follower.found(range(25)) == 20
    assert follower.read(range(20)) == [OK] * 20


def test_blocks_that_come_later_are_found_later(pair):
    writer, follower = pair
    for number in range(5):
        assert follower.found(range(10)) == number
        writer.write([number])
    assert follower.found(range(10)) == 5


def test_a_follower_that_comes_late_finds_what_is_there(disk, columns):
    disk.lead(columns=columns).write(range(20))
    assert disk.follow(columns=columns).found(range(25)) == 20


def test_what_earlier_processes_have_left_is_found(disk, columns):
    disk.store(range(700), columns=columns)
    disk.lead(columns=columns)
    follower = disk.follow(columns=columns)
    assert follower.found(range(700)) == 700
    assert set(follower.read(range(700))) == {OK}


def test_a_block_of_which_a_column_is_missing_is_not_found(disk):
    writer, follower = disk.lead(columns=disk.columns), disk.follow(columns=disk.columns)
    writer.write(range(4))
    writer.tier._columns[1].forget([disk.key(2)])
    assert follower.found(range(4)) == 2


def test_what_was_deleted_is_not_found(disk, pair):
    writer, follower = pair
    writer.write(range(4))
    assert follower.found(range(4)) == 4
    writer.tier.delete([disk.key(3)])
    assert follower.found(range(4)) == 3
    assert follower.read(range(4)) == [OK, OK, OK, MISS]


def test_a_slot_that_was_written_over_is_a_miss_and_no_corruption(disk, columns, small_steps):
    quota_bytes = len(columns) * (4096 + 4 * disk.slot_bytes)
    writer = disk.lead(columns=columns, quota_bytes=quota_bytes)
    follower = disk.follow(columns=columns)
    writer.write(range(4))
    follower.found(range(4))
    writer.tier.delete([disk.key(number) for number in range(4)])
    assert writer.write(range(100, 104)) == [OK] * 4
    assert follower.read(range(4)) == [MISS] * 4
    assert "ssd_corrupt_blocks" not in follower.tier.take_counts()


def test_a_block_that_moved_is_found_where_it_is_now(disk, small_steps):
    writer = disk.lead(quota_bytes=4096 + 8 * disk.slot_bytes)
    follower = disk.follow()
    writer.write(range(8))
    follower.found(range(8))
    writer.tier.delete([disk.key(0), disk.key(5)])
    writer.write([100, 0])
    assert follower.read([0]) == [MISS]
    assert follower.found([0]) == 1
    assert follower.read([0, 100]) == [OK, OK]


def test_slabs_that_are_added_are_followed(disk, tmp_path, small_steps):
    directories = [tmp_path / name for name in "abc"]
    writer, follower = disk.lead(directories=directories), disk.follow(directories=directories)
    for number in range(40):
        writer.write([number])
        assert follower.found(range(40)) == number + 1
    assert set(follower.read(range(40))) == {OK}


def test_slabs_that_were_deleted_are_let_go(disk, pair):
    writer, follower = pair
    writer.write(range(4))
    follower.found(range(4))
    for slab in disk.slabs():
        slab.unlink()
    assert follower.found(range(4)) == 0
    assert _open_slabs(follower) == 0


def test_slabs_that_are_made_anew_are_followed(disk, pair):
    writer, follower = pair
    for round_number in range(3):
        writer.write(range(4))
        assert follower.found(range(5)) == 4
        assert follower.read(range(4)) == [OK] * 4
        for slab in disk.slabs():
            slab.unlink()
        assert writer.read([round_number]) == [MISS]


def test_a_writer_that_ends_well_leaves_no_log_and_is_not_found(disk, pair):
    writer, follower = pair
    writer.write(range(4))
    follower.found(range(4))
    writer.close()
    assert disk.logs() == []
    assert follower.found(range(4)) == 0


def test_blocks_of_another_engine_are_not_followed(disk):
    disk.lead(engine_id="other").write(range(4))
    assert disk.follow().found(range(4)) == 0


def test_a_log_of_another_engine_under_our_name_is_not_believed(disk):
    disk.lead(engine_id="other").write(range(4))
    follower = disk.follow()
    disk.lead().write([50])
    other, ours = sorted(disk.logs(), key=lambda path: path.stat().st_size, reverse=True)
    ours.write_bytes(other.read_bytes())
    assert follower.found(range(4)) == 0


def test_without_followers_there_is_no_log(disk):
    disk.open().write(range(4))
    assert disk.logs() == []


def test_a_follower_writes_nothing(disk, pair):
    _, follower = pair
    assert follower.write(range(4)) == [ERROR] * 4
    follower.tier.delete([disk.key(1)])
    follower.close()
    assert disk.slabs() == []


def test_a_follower_that_was_closed_answers(disk, pair):
    writer, follower = pair
    writer.write(range(4))
    follower.found(range(4))
    follower.tier.close()
    follower.tier.close()
    assert follower.found(range(4)) == 0
    assert follower.read(range(4)) == [ERROR] * 4


def test_reads_that_are_late_do_not_begin(pair):
    writer, follower = pair
    writer.write([1])
    follower.found([1])
    assert follower.tier.read(follower.blocks([1]), follower.clock() - 1) == [TIMEOUT]


@pytest.mark.parametrize("keeps_name", [True, False])
class TestReset:
    """The weights have changed on all ranks, though not at one moment."""

    def test_nothing_of_before_is_found_wherever_the_writer_is(self, pair, keeps_name):
        writer, follower = pair
        writer.write(range(4))
        follower.tier.begin_generation()
        assert follower.found(range(4)) == 0
        assert follower.read(range(4)) == [MISS] * 4
        writer.tier.begin_generation("g", keeps_name=keeps_name)
        assert follower.found(range(4)) == 0

    def test_nothing_of_after_is_found_before_the_follower_has_changed(self, pair, keeps_name):
        writer, follower = pair
        writer.write(range(4))
        writer.tier.begin_generation("g", keeps_name=keeps_name)
        writer.write(range(4))
        assert follower.found(range(4)) == 0

    def test_what_comes_after_is_found(self, pair, keeps_name):
        writer, follower = pair
        for generation in range(3):
            writer.write(range(generation + 1))
            assert follower.found(range(4)) == generation + 1
            assert follower.read(range(generation + 1)) == [OK] * (generation + 1)
            writer.tier.begin_generation(f"g{generation}", keeps_name=keeps_name)
            follower.tier.begin_generation()

    def test_what_was_planned_before_does_not_read_what_comes_after(self, pair, keeps_name):
        writer, follower = pair
        former = follower.tier.snapshot()
        writer.tier.begin_generation("g", keeps_name=keeps_name)
        follower.tier.begin_generation()
        writer.write([1])
        assert follower.found([1]) == 1
        assert former.read(follower.blocks([1]), None) == [MISS]


def test_a_slot_that_is_written_over_while_it_is_read_is_right_or_a_miss(disk, small_steps):
    """Four slots, forty blocks, two threads: whatever is OK has its own bytes."""
    writer = disk.lead(quota_bytes=4096 + 4 * disk.slot_bytes)
    follower = disk.follow()
    seen = []

    def churn():
        for number in range(400):
            writer.tier.delete([disk.key((number - 4) % 40)])
            writer.write([number % 40])

    thread = threading.Thread(target=churn)
    thread.start()
    while thread.is_alive():
        follower.tier.count_leading([])
        seen += follower.read(range(40))
    thread.join()
    assert set(seen) <= {OK, MISS}
    follower.found([39])
    assert follower.read(range(36, 40)) == [OK] * 4


def test_another_process_writes_and_is_killed(disk):
    """Its log stays and is of use until somebody else takes the slabs."""
    conftest = sys.modules[type(disk).__module__].__file__
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, conftest, str(disk.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    follower = disk.follow()
    for number in range(12):
        assert int(child.stdout.readline()) == number
        assert follower.found(range(number + 1)) == number + 1
    assert set(follower.read(range(12))) == {OK}
    child.stdin.write("go on\n")
    child.stdin.flush()
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    num_found = follower.found(range(10**4))
    assert num_found >= 13
    assert set(follower.read(range(num_found))) == {OK}
    heir = disk.lead(engine_id="heir")
    heir.tier.delete([disk.key(number) for number in range(num_found)])
    heir.write(range(20_000, 20_100))
    assert set(follower.read(range(num_found))) <= {OK, MISS}


def test_the_log_of_a_process_that_was_killed_is_deleted_by_who_makes_room(disk):
    disk.open(engine_id="a").write([1])
    (disk.path / ".0123456789abcdef.keys").write_bytes(b"anything")
    disk.open(engine_id="b").write([2])
    assert disk.logs() == []


def test_the_log_of_a_process_that_lives_is_left_alone(disk):
    writer = disk.lead()
    writer.write([1])
    disk.open(engine_id="b").write([2])
    assert len(disk.logs()) == 1


def _open_slabs(follower):
    return sum(slab is not None for column in follower.tier._columns for slab in column._slabs)
