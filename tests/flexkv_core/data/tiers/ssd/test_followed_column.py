"""What a follower makes of a log: whatever it says, a read is right or a miss."""

import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexkv_core.data.tiers.ssd.key_log import RECORD_BYTES, KeyRecord, LogHeader
from flexkv_core.data.tiers.ssd.slab import SlabView
from flexkv_core.plan import Status

OK, _, MISS, CORRUPT, TIMEOUT, ERROR, _ = Status


@pytest.fixture
def pair(disk):
    writer, follower = disk.lead(), disk.follow()
    writer.write(range(8))
    return writer, follower


def append(disk, content):
    [log] = disk.logs()
    with log.open("ab") as file:
        file.write(content)


def change_header(disk, **changes):
    """Let the log say something else of itself."""
    [log] = disk.logs()
    header, size = LogHeader.unpack(log.read_bytes())
    records = log.read_bytes()[size:]
    log.write_bytes(msgspec.structs.replace(header, **changes).pack() + records)


def test_half_a_record_waits_for_its_other_half(disk, pair):
    _, follower = pair
    record = KeyRecord(disk.key(100), 0, 0).pack()
    append(disk, record[:17])
    assert follower.found([100]) == 0
    append(disk, record[17:])
    assert follower.found([100]) == 1


def test_a_record_that_lies_is_a_miss(disk, pair):
    _, follower = pair
    append(disk, KeyRecord(disk.key(100), 0, 3).pack() + KeyRecord(disk.key(1), 0, 2).pack())
    follower.found([])
    assert follower.read([100, 1, 0]) == [MISS, MISS, OK]


def test_a_slot_behind_the_end_is_a_miss(disk, pair):
    _, follower = pair
    append(disk, KeyRecord(disk.key(1), 0, 2**32 - 1).pack())
    follower.found([])
    assert follower.read([0, 1]) == [OK, MISS]


def test_a_slab_that_was_never_named_is_nowhere(disk, pair):
    _, follower = pair
    append(disk, KeyRecord(disk.key(1), 7, 0).pack())
    assert follower.found(range(8)) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            KeyRecord,
            st.integers(0, 9).map(lambda number: (number + 1).to_bytes(4, "big") * 8),
            st.sampled_from([0, 0, 0, None, 1]),
            st.integers(0, 12),
        ),
        max_size=12,
    ),
    st.binary(max_size=90),
)
def test_whatever_a_log_says_reads_are_right_or_a_miss(disk, records, rubbish):
    writer, follower = disk.lead(), disk.follow()
    writer.write(range(8))
    append(disk, b"".join(record.pack() for record in records) + rubbish)
    follower.found([])
    assert set(follower.read(range(10))) <= {OK, MISS}
    writer.close()
    follower.close()


@pytest.mark.parametrize(
    "changes",
    [{"engine_id": "other"}, {"num_resets": 1}, {"slabs": ()}, {"slabs": ("/dev/null", "/none")}],
    ids=str,
)
def test_a_log_of_somebody_else_or_without_slabs_holds_nothing(disk, pair, changes):
    _, follower = pair
    change_header(disk, **changes)
    assert follower.found(range(8)) == 0


def test_a_log_of_another_model_is_not_followed(disk, pair):
    _, follower = pair
    other = msgspec.structs.replace(disk.namespace, model="another")
    change_header(disk, superblock=disk.superblock(namespace=other))
    assert follower.found(range(8)) == 0


def test_a_log_that_was_cut_is_read_from_its_beginning(disk, pair):
    _, follower = pair
    assert follower.found(range(8)) == 8
    [log] = disk.logs()
    os.truncate(log, log.stat().st_size - 3 * RECORD_BYTES)
    assert follower.found(range(8)) == 5


def test_a_log_that_is_cut_while_it_is_read_is_read_again(disk, pair, monkeypatch):
    _, follower = pair
    assert follower.found(range(8)) == 8
    [log] = disk.logs()

    def cut(_):
        os.truncate(log, log.stat().st_size - RECORD_BYTES)

    with monkeypatch.context() as patch:
        patch.setattr(SlabView, "is_lost", property(cut))  # the last thing before it is read
        follower.found([])
    assert follower.found(range(8)) == 7


@pytest.mark.parametrize("content", [b"", b"FLEXKVK1", b"\0" * 5000], ids=len)
def test_a_log_that_makes_no_sense_is_none(disk, pair, content):
    _, follower = pair
    [log] = disk.logs()
    log.write_bytes(content)
    assert follower.found(range(8)) == 0


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_what_is_no_file_in_the_place_of_a_log_is_none(disk, pair, make):
    _, follower = pair
    [log] = disk.logs()
    log.unlink()
    make(log)
    assert follower.found(range(8)) == 0
    log.rmdir() if log.is_dir() and not log.is_symlink() else log.unlink()


def test_a_damaged_cell_is_a_miss_and_stays_known(disk, pair):
    _, follower = pair
    follower.found([])
    [slab] = disk.slabs()
    content = bytearray(slab.read_bytes())
    content[4096 + 4096 + 5] ^= 1
    slab.write_bytes(content)
    assert follower.read(range(8)) == [MISS] + [OK] * 7
    assert follower.found(range(8)) == 8


def test_many_records_are_taken_in(disk):
    writer, follower = disk.lead(), disk.follow()
    writer.write([0])
    keys = range(1, 60_000)
    append(disk, b"".join(KeyRecord(disk.key(number), 0, number).pack() for number in keys))
    assert follower.found(range(60_000)) == 60_000


def test_a_disk_that_cannot_read_is_an_error_and_counted(disk, pair, monkeypatch):
    def broken(*_):
        raise OSError(5, "broken")

    _, follower = pair
    follower.found([])
    monkeypatch.setattr("flexkv_core.data.tiers.ssd.slab.SlabView.read", broken)
    assert follower.read(range(8)) == [ERROR] * 8
    assert follower.tier.take_counts()["ssd_io_errors"] >= 1
