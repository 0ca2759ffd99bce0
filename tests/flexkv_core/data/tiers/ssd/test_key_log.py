"""The log: what it says of itself, when it begins anew, and that its failures hurt nobody else."""

import threading

import pytest

from flexkv_core.data.tiers.ssd.format import Superblock
from flexkv_core.data.tiers.ssd.key_log import (
    RECORD_BYTES,
    KeyRecord,
    LogHeader,
    log_name,
    unpack_records,
)
from flexkv_core.plan import Status

OK = Status.OK


@pytest.fixture
def short_logs(monkeypatch):
    """Let logs begin anew often."""
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.key_log._MIN_RECORDS", 8)


def header_of(disk, **changes):
    values = {"engine_id": "e", "num_resets": 3, "superblock": disk.superblock(), "slabs": ("/a",)}
    return LogHeader(**values | changes)


def test_a_header_comes_back_with_its_size(disk):
    packed = header_of(disk).pack()
    assert LogHeader.unpack(packed + b"records") == (header_of(disk), len(packed))


@pytest.mark.parametrize("at", [0, 9, 15, 40, -1])
def test_a_header_that_was_changed_is_none(disk, at):
    packed = bytearray(header_of(disk).pack())
    packed[at] ^= 1
    assert LogHeader.unpack(bytes(packed)) is None


def test_what_is_shorter_than_a_header_is_none(disk):
    packed = header_of(disk).pack()
    assert [LogHeader.unpack(packed[:size]) for size in (0, 5, 20, len(packed) - 1)] == [None] * 4


def test_a_superblock_is_no_header(disk):
    assert LogHeader.unpack(disk.superblock().pack()) is None
    assert Superblock.unpack(header_of(disk).pack().ljust(4096, b"\0")) is None


def test_records_come_back():
    records = [KeyRecord(bytes([n]) * 32, n if n < 3 else None, n * 1000) for n in range(4)]
    packed = b"".join(record.pack() for record in records)
    assert len(packed) == 4 * RECORD_BYTES
    assert list(unpack_records(packed)) == records


def test_names_are_of_engine_column_and_namespace_and_not_seen_by_listings(disk):
    names = {
        log_name(engine, disk.namespace, column) for engine in ("e", "f") for column in disk.columns
    }
    assert len(names) == 4
    assert all(name.startswith(".") for name in names)


def test_a_log_of_many_changes_stays_small(disk, short_logs):
    writer, follower = disk.lead(), disk.follow()
    for _ in range(100):
        writer.write(range(8))
        writer.tier.delete([disk.key(number) for number in range(1, 8)])
    [log] = disk.logs()
    assert log.stat().st_size < 2000 + 80 * 8 + 8 * RECORD_BYTES * 3
    writer.write(range(4))
    assert follower.found(range(8)) == 4


def test_a_follower_goes_on_when_the_log_begins_anew(disk, short_logs):
    writer, follower = disk.lead(), disk.follow()
    for number in range(200):
        writer.write([number])
        assert follower.found(range(200)) == number + 1


def test_a_log_is_for_its_user_alone(disk):
    disk.lead().write([1])
    [log] = disk.logs()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_costs_hits_and_no_writes(disk, monkeypatch):
    writer, follower = disk.lead(), disk.follow()
    with monkeypatch.context() as patched:
        patched.setattr("flexkv_core.data.tiers.ssd.directory.Directory.make_log", _no_room)
        assert writer.write([0]) == [OK]
        assert follower.found([0]) == 0
    writer.write([1])
    assert follower.found([0]) == 0
    writer.clock.advance(61)
    writer.write([2])
    assert follower.found([0, 1, 2]) == 3


def test_a_log_that_cannot_grow_is_deleted(disk, monkeypatch):
    writer, follower = disk.lead(), disk.follow()
    writer.write([0])
    log = writer.tier._columns[0]._log
    monkeypatch.setattr(log._file, "write", _no_room)
    writer.write([1])
    assert disk.logs() == []
    assert follower.found([0]) == 0


def test_a_log_that_could_be_neither_written_nor_deleted_is_followed_no_longer(
    disk, tmp_path, monkeypatch
):
    directories = [tmp_path / "bad", tmp_path / "good"]
    writer, follower = disk.lead(directories=directories), disk.follow(directories=directories)
    writer.write([0])
    assert follower.found([0]) == 1
    log = writer.tier._columns[0]._log
    monkeypatch.setattr(log._file, "write", _no_room)
    monkeypatch.setattr(log._file, "unlink", _no_room)
    writer.write([1])
    assert [path.stat().st_size for path in directories[0].glob(".*.keys")] == [0]
    assert follower.found([0]) == 0
    writer.clock.advance(61)
    writer.write([2])
    assert follower.found([0, 1, 2]) == 3


def test_the_next_directory_has_the_log_when_one_has_failed(disk, tmp_path):
    directories = [tmp_path / "bad", tmp_path / "good"]
    writer, follower = disk.lead(directories=directories), disk.follow(directories=directories)
    (directories[0] / ".lock").unlink()
    directories[0].rmdir()
    directories[0].write_text("in the way")
    writer.write([0])
    writer.clock.advance(61)
    writer.write([1])
    assert follower.found([0, 1]) == 2


def test_changes_of_many_threads_end_in_the_truth(disk, short_logs):
    writer, follower = disk.lead(), disk.follow()
    column = writer.tier._columns[0]
    keys = [disk.key(number) for number in range(8)]

    def toggle(seed):
        for step in range(60):
            key = keys[(seed + step) % 8]
            with column.space.lock:
                slab = column.space.slabs[0]
                known = slab.slots.find(key) is not None
            if known:
                column.forget([key])
            else:
                column.write(_cells(writer, disk, keys.index(key)), None)

    writer.write(range(8))
    threads = [threading.Thread(target=toggle, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [follower.found([n]) == 1 for n in range(8)] == [key in column for key in keys]


def test_one_note_is_written_at_a_time(disk, monkeypatch):
    """Or an older place of a key could come behind its newer one."""
    writer = disk.lead()
    writer.write([0])
    log = writer.tier._columns[0]._log
    is_locked = []
    monkeypatch.setattr(log._file, "write", lambda *_: is_locked.append(log._writing.locked()))
    writer.write([1])
    assert is_locked == [True]


def _no_room(*_, **__):
    raise OSError(28, "no space left")


def _cells(rank, disk, number):
    from flexkv_core.data.tiers.ssd.slab import Cell

    content = memoryview(bytearray(disk.content(number, disk.cell_bytes)))
    return [Cell(disk.key(number), None, (content,))]
