"""The host pool: one anonymous region, shared between processes of a node."""

import errno
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.data.tiers import host
from flexkv_core.data.tiers.host import HostPool, PoolAddress, num_slots_in, slot_stride
from flexkv_core.errors import TierError

ATTACH_AND_ANSWER = """
import sys, msgspec
from flexkv_core.data.tiers.host import HostPool, PoolAddress
pool = HostPool.attach(msgspec.json.decode(sys.argv[1], type=PoolAddress))
assert pool.buffer[pool.slot_stride] == 17
pool.buffer[2 * pool.slot_stride] = 99
"""

CREATE_AND_WAIT = """
import sys, msgspec
from flexkv_core.data.tiers.host import HostPool
pool = HostPool.create(2, 4096)
print(msgspec.json.encode(pool.address).decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pool():
    pool = HostPool.create(3, 5000)
    yield pool
    pool.close()


def bytes_taken(pool):
    """Memory that the kernel has given to the pool so far."""
    return os.fstat(pool.address.fd).st_blocks * 512


def test_slots_begin_on_pages(pool):
    assert pool.slot_stride == 8192
    assert np.frombuffer(pool.buffer, np.uint8).ctypes.data % 4096 == 0


@given(st.integers(0, 1 << 45), st.integers(1, 1 << 27))
def test_slots_with_their_padding_never_exceed_what_was_asked(capacity_bytes, slot_bytes):
    num_slots = num_slots_in(capacity_bytes, slot_bytes)
    assert num_slots * slot_stride(slot_bytes) <= capacity_bytes
    assert (num_slots + 1) * slot_stride(slot_bytes) > capacity_bytes


@given(st.integers(1, 1 << 27))
def test_padding_is_less_than_a_page(slot_bytes):
    assert 0 <= slot_stride(slot_bytes) - slot_bytes < 4096
    assert slot_stride(slot_bytes) % 4096 == 0


def test_a_pool_is_as_large_as_its_slots_and_takes_no_memory_yet(pool):
    assert len(pool.buffer) == 3 * 8192
    assert bytes_taken(pool) == 0


def test_nobody_can_change_the_size_of_the_region(pool):
    with pytest.raises(PermissionError):
        os.ftruncate(pool.address.fd, 4096)


def test_a_program_started_by_the_engine_does_not_inherit_the_region(pool):
    assert not os.get_inheritable(pool.address.fd)


def test_another_process_sees_the_same_bytes(pool):
    pool.buffer[pool.slot_stride] = 17
    address = msgspec.json.encode(pool.address).decode()
    subprocess.run([sys.executable, "-c", ATTACH_AND_ANSWER, address], check=True)
    assert pool.buffer[2 * pool.slot_stride] == 99


def test_an_attached_pool_has_the_same_slots(pool):
    attached = HostPool.attach(pool.address)
    assert (attached.num_slots, attached.slot_bytes, attached.slot_stride) == (3, 5000, 8192)
    attached.close()


def test_an_attached_pool_outlives_its_creator(pool):
    attached = HostPool.attach(pool.address)
    pool.buffer[0] = 5
    pool.close()
    assert attached.buffer[0] == 5
    attached.close()


def test_the_pool_of_a_killed_process_cannot_be_attached():
    with subprocess.Popen(
        [sys.executable, "-c", CREATE_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        address = msgspec.json.decode(process.stdout.readline(), type=PoolAddress)
        HostPool.attach(address).close()
        process.send_signal(signal.SIGKILL)
    with pytest.raises(TierError, match="must run on one node"):
        HostPool.attach(address)


def test_a_file_number_that_names_something_else_by_now_is_not_attached(pool, tmp_path):
    address = pool.address
    with (tmp_path / "other").open("w+b") as other:
        pool.close()
        os.dup2(other.fileno(), address.fd)
        with pytest.raises(TierError, match="not the pool that was announced"):
            HostPool.attach(address)
        os.close(address.fd)


def test_a_newer_pool_under_the_same_file_number_is_not_attached(pool):
    address = pool.address
    pool.close()
    newer = HostPool.create(3, 5000)
    assert newer.address.fd == address.fd
    with pytest.raises(TierError, match="not the pool that was announced"):
        HostPool.attach(address)
    newer.close()


def test_a_refused_attachment_leaves_no_file_open(pool, open_files):
    wrong = msgspec.structs.replace(pool.address, inode=pool.address.inode + 1)
    before = open_files()
    with pytest.raises(TierError):
        HostPool.attach(wrong)
    assert not open_files() - before


def test_closing_twice_is_closing_once(pool):
    pool.close()
    pool.close()
    assert len(pool.buffer) == 0


def test_a_copy_under_way_keeps_its_memory_when_the_pool_is_closed(pool):
    view = np.frombuffer(pool.buffer, np.uint8)
    pool.close()
    view[:] = 7
    assert view.sum() == 7 * 3 * 8192


def test_a_closed_pool_gives_its_file_back(pool):
    fd = pool.address.fd
    pool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_prefaulting_takes_the_memory_and_changes_no_byte(pool):
    pool.buffer[9000] = 42
    before = bytes(pool.buffer[:12288])
    pool.prefault()
    pool._prefaulter.join()
    assert bytes_taken(pool) == 3 * 8192
    assert bytes(pool.buffer[:12288]) == before


def test_prefaulting_twice_starts_one_thread(pool):
    pool.prefault()
    first = pool._prefaulter
    pool.prefault()
    assert pool._prefaulter is first


def test_closing_waits_for_the_prefaulting(pool, mocker):
    pool.prefault()
    join = mocker.spy(pool._prefaulter, "join")
    pool.close()
    join.assert_called_once_with()


def test_prefaulting_stops_as_soon_as_the_pool_closes(pool):
    pool._stop.set()
    pool.prefault()
    pool._prefaulter.join()
    assert bytes_taken(pool) == 0


def test_prefaulting_runs_at_the_lowest_priority(pool, mocker):
    set_priority = mocker.spy(os, "setpriority")
    pool.prefault()
    pool._prefaulter.join()
    set_priority.assert_called_once_with(os.PRIO_PROCESS, pool._prefaulter.native_id, 19)


def test_a_kernel_that_cannot_prefault_is_a_warning(pool, monkeypatch, caplog):
    monkeypatch.setattr(host, "_MADV_POPULATE_WRITE", 9999)
    pool.prefault()
    pool._prefaulter.join()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Invalid argument" in caplog.text


def test_memory_that_does_not_exist_is_refused_with_what_to_do():
    with pytest.raises(TierError, match=r"cannot get \d+ bytes.*lower cpu_cache_gb$"):
        HostPool.create(1 << 40, 1 << 20)


def test_a_region_whose_size_is_refused_leaves_no_file_open(mocker, open_files):
    mocker.patch("os.ftruncate", side_effect=OSError(errno.EFBIG, "File too large"))
    before = open_files()
    with pytest.raises(TierError, match="File too large"):
        HostPool.create(1, 4096)
    assert not open_files() - before


def test_missing_huge_pages_are_refused_with_how_many_to_reserve():
    too_many = 1 << 20
    with pytest.raises(TierError, match=rf"reserve {too_many} huge pages"):
        HostPool.create(too_many, 2 << 20, huge_pages=True)


def test_a_refused_pool_leaves_no_file_open(open_files):
    before = open_files()
    with pytest.raises(TierError):
        HostPool.create(1 << 20, 2 << 20, huge_pages=True)
    assert not open_files() - before
