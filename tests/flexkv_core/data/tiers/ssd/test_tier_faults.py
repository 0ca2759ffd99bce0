"""Calls that the system fails: a status for the blocks they were for, and serving goes on."""

import errno
import os
import threading

import pytest

from flexkv_core.data.tiers.ssd import slab as slab_module
from flexkv_core.data.tiers.ssd.files import available_bytes
from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status


@pytest.fixture
def fail_nth(monkeypatch):
    """Let the n-th call of an `os` function from now on fail; it may tear its work first."""

    def install(name, number, code=errno.EIO, before=lambda *_: None):
        original = getattr(os, name)
        calls = iter(range(1, 1 << 30))

        def function(*arguments):
            if next(calls) == number:
                before(original, *arguments)
                raise OSError(code, os.strerror(code))
            return original(*arguments)

        monkeypatch.setattr(os, name, function)

    return install


@pytest.mark.parametrize("number", range(1, 4))
def test_a_read_that_fails_is_an_error_of_its_blocks_alone(disk, fail_nth, number):
    rank = disk.open()
    rank.write(range(24))
    fail_nth("preadv", number)
    expected = [OK] * 24
    expected[8 * (number - 1) : 8 * number] = [ERROR] * 8
    assert rank.read(range(24)) == expected
    assert rank.tier.take_counts()["ssd_io_errors"] == 1
    assert rank.read(range(24)) == [OK] * 24


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("number", range(2, 4))
def test_a_write_that_fails_leaves_no_block(disk, fail_nth, number, code):
    rank = disk.open(columns=disk.columns)
    rank.write([100])
    fail_nth("pwritev", number, code)
    statuses = rank.write(range(24))
    failed = [n for n, status in enumerate(statuses) if status is ERROR]
    assert failed == list(range(8 * ((number - 1) // 2), 8 * ((number - 1) // 2) + 8))
    assert [n for n, status in enumerate(rank.read(range(24))) if status is MISS] == failed
    assert rank.write(range(24)) == rank.read(range(24)) == [OK] * 24


def test_a_write_that_fails_in_its_middle_is_found_by_nobody(disk, fail_nth):
    rank = disk.open()
    rank.write([100])
    fail_nth("pwritev", 1, before=lambda write, fd, bs, at: write(fd, bs[:3], at))
    assert rank.write([0, 1]) == [ERROR, ERROR]
    rank.close()
    again = disk.open(engine_id="next")
    assert set(again.read([0, 1])) <= {OK, MISS, CORRUPT}
    assert again.read([100]) == [OK]


def test_cells_of_a_write_that_fails_are_not_found_corrupt_after_a_restart(disk, fail_nth):
    """The header of a cell may be there without its payload."""
    rank = disk.open()
    rank.write([100])
    fail_nth("pwritev", 1, before=lambda write, fd, bs, at: write(fd, bs[:3], at))
    rank.write([0, 1])
    rank.close()
    assert disk.open(engine_id="next").recovered() == [100]


@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "buffered"])
def test_a_cell_that_cannot_be_erased_is_told_once_and_forgotten(
    disk, monkeypatch, caplog, is_direct
):
    if not is_direct:
        monkeypatch.setattr(
            "flexkv_core.data.tiers.ssd.files.SlabFile.make_direct", lambda _: False
        )
    disk.store(range(8))
    _corrupt_all_payloads(disk)
    rank = disk.open()

    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        assert rank.read(range(8)) == [CORRUPT] * 8
        assert rank.read(range(8)) == [MISS] * 8
    assert caplog.text.count("ssd.io_failed") == 1
    assert rank.tier.take_counts()["ssd_io_errors"] == 1
    assert rank.write(range(8)) == rank.read(range(8)) == [OK] * 8


def _corrupt_all_payloads(disk):
    [slab] = disk.slabs()
    content = bytearray(slab.read_bytes())
    for payload in range(2 * 4096, len(content), disk.slot_bytes):
        content[payload] ^= 1
    slab.write_bytes(content)


def test_slots_of_failed_writes_are_not_lost(disk, monkeypatch):
    rank = disk.open(quota_bytes=4096 + 4 * disk.slot_bytes)
    rank.write([0])

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail)
        for number in range(1, 9):
            assert rank.write([number]) == [ERROR]
    assert rank.write([1, 2, 3]) == [OK] * 3


def test_failures_are_mentioned_once(disk, monkeypatch, caplog):
    rank = disk.open()
    rank.write(range(16))

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    rank.read(range(16))
    assert caplog.text.count("ssd.io_failed") == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_slabs_that_can_be_written_no_more_are_told_until_they_can(disk, monkeypatch, caplog, code):
    """As on a file system that became read-only, or is thinly provisioned."""
    rank = disk.open()
    rank.write([0])

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", refuse)
        assert rank.write(range(1, 20)) == [ERROR] * 19
    [begin] = [line for line in caplog.messages if "ssd.no_room" in line]
    assert str(disk.path) in begin
    assert os.strerror(code) in begin
    assert "ssd.has_room" not in caplog.text
    assert rank.write(range(1, 20)) == [OK] * 19
    assert caplog.text.count("ssd.has_room") == 1
    assert rank.tier.take_counts()["ssd_io_errors"] > 0


def test_without_direct_io_everything_works(disk, monkeypatch):
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.files.SlabFile.make_direct", lambda _: False)
    disk.store(range(20), columns=disk.columns)
    assert set(disk.open(columns=disk.columns).read(range(20))) == {OK}


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_short_transfers_are_completed(disk, monkeypatch, limit):
    """The system moves `limit` buffers at a time."""
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, bs, at: preadv(fd, bs[:limit], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, bs, at: pwritev(fd, bs[:limit], at))
    rank = disk.open(columns=disk.columns)
    assert set(rank.write(range(20)) + rank.read(range(20))) == {OK}


def test_a_header_that_cannot_be_read_loses_its_block_alone(disk, fail_nth):
    disk.store(range(20))
    fail_nth("pread", 3)
    rank = disk.open()
    assert len(rank.recovered()) == 19
    assert rank.tier.take_counts() == {"ssd_io_errors": 1, "ssd_recovered_blocks": 19}


def test_a_chain_is_one_transfer(disk, monkeypatch):
    rank = disk.open()
    rank.write([100])
    sizes = {"preadv": [], "pwritev": []}
    for name, seen in sizes.items():
        original = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda fd, bs, at, original=original, seen=seen: (
                seen.append(len(bs)) or original(fd, bs, at)
            ),
        )
    rank.tier.write(rank.blocks(range(20)), None)
    rank.tier.read(rank.blocks(range(20)), None)
    assert sizes == {"preadv": [40], "pwritev": [40]}


def test_long_chains_are_cut_where_the_system_would_refuse(disk, monkeypatch):
    monkeypatch.setattr(slab_module, "_MAX_RUN_CELLS", 4)
    monkeypatch.setattr(slab_module, "_headers", slab_module._HeaderPages())
    rank = disk.open()
    assert set(rank.write(range(20)) + rank.read(range(20))) == {OK}


def test_a_file_system_that_is_full(disk, small_steps, mount):
    """A real one, of 1 MiB: capacity falls to what fits, and everything else goes on."""
    directory = mount("-t", "tmpfs", "-o", "size=1m", "flexkv-test")
    rank = disk.open(directories=[directory])
    before = rank.tier.capacity_blocks
    statuses = rank.write(range(200))
    num_stored = statuses.count(OK)
    assert statuses == [OK] * num_stored + [ERROR] * (200 - num_stored)
    assert 70 < rank.tier.capacity_blocks == num_stored < before
    assert set(rank.read(range(num_stored))) == {OK}
    rank.tier.delete([disk.key(0)])
    assert rank.write([150]) == rank.read([150]) == [OK]
    rank.close()
    assert len(disk.open(directories=[directory]).recovered()) == num_stored
    disk.ranks[-1].close()


def test_without_a_cap_others_find_room_where_slabs_have_grown(disk, small_steps, mount):
    """A real file system of 8 MiB: 1/20 of it stays free, and a foreign file may take that."""
    directory = mount("-t", "tmpfs", "-o", "size=8m", "flexkv-test")
    rank = disk.open(directories=[directory])
    rank.write(range(1000))
    num_stored = rank.tier.capacity_blocks
    assert available_bytes(directory) >= (8 << 20) // 20
    (directory / "foreign").write_bytes(bytes((8 << 20) // 20))
    rank.clock.advance(60)
    assert rank.write([1001]) == [ERROR]
    assert rank.tier.capacity_blocks == num_stored
    assert set(rank.read(range(num_stored))) == {OK}
    rank.close()


def test_without_a_free_descriptor_what_is_open_serves_on(disk, small_steps, limit_files):
    rank = disk.lead(quota_bytes=4096 + 20 * disk.slot_bytes)
    rank.write(range(4))
    limit_files(0)
    assert rank.write(range(4, 9)) == [ERROR] * 5
    assert rank.read(range(4)) == [OK] * 4
    rank.tier.begin_generation("next", keeps_name=True)
    assert rank.write([0]) == [ERROR]
    limit_files(100)
    rank.clock.advance(60)
    assert rank.write([0]) == rank.read([0]) == [OK]


def test_a_file_system_without_allocation_keeps_blocks(disk, small_steps, mount_ext2):
    directory = mount_ext2(num_mib=16)
    rank = disk.open(directories=[directory])
    assert set(rank.write(range(600)) + rank.read(range(600))) == {OK}
    rank.close()


def test_many_threads_share_a_small_tier(disk, small_steps):
    """Eight threads write, read and delete; 40 slots for 64 blocks that come and go."""
    rank = disk.open(columns=disk.columns, quota_bytes=2 * (4096 + 40 * disk.slot_bytes))
    wrong = []

    def work(thread):
        rounds = range(150)
        place = rank.place(thread)
        for turn in rounds:
            number = (turn * 7 + thread * 5) % 64
            [block] = rank.blocks([number])
            block = type(block)(block.key, block.parent, thread)
            content = disk.content(number, rank.block_bytes)
            place[:] = content
            rank.tier.write([block], None)
            place[:] = bytes(len(place))
            [status] = rank.tier.read([block], None)
            if status not in (OK, MISS) or (status is OK and place != content):
                wrong.append((thread, turn, status))
            if turn % 3 == 0:
                rank.tier.delete([block.key])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    rank.tier.delete([disk.key(number) for number in range(64)])
    assert rank.write(range(40)) == [OK] * 40
