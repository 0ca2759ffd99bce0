"""Blocks that are deleted while a plan that stores them is under way."""

import threading

import pytest

from flexkv_core.data.tiers.ssd.slab import Slab
from flexkv_core.plan import Status

OK, _, MISS, _, _, ERROR, _ = Status
WAIT_S = 30.0


class LateWrite:
    """Writes blocks as a plan does, and stops at the disk the `num_before`th time."""

    def __init__(self, rank, numbers, monkeypatch, num_before=0):
        self._num_before = num_before
        self._write, self.fails = Slab.write, False
        self._begun, self._may_go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(Slab, "write", lambda *args: self._hold(*args))
        plan, blocks = rank.tier.snapshot(), rank.filled(numbers)
        self._thread = threading.Thread(target=plan.write, args=(blocks, None))
        self._thread.start()
        assert self._begun.wait(WAIT_S)

    def _hold(self, *args):
        if threading.current_thread() is self._thread:
            if not self._num_before:
                self._begun.set()
                assert self._may_go_on.wait(WAIT_S)
                if self.fails:
                    raise OSError
            self._num_before -= 1
        self._write(*args)

    def end(self):
        self._may_go_on.set()
        self._thread.join()


@pytest.fixture
def rank(disk):
    """A rank of two columns with room for two blocks."""
    return disk.open(columns=disk.columns, quota_bytes=2 * (4096 + 2 * disk.slot_bytes))


@pytest.mark.parametrize("num_before", [0, 1])
def test_what_is_deleted_while_it_is_written_takes_no_room(rank, disk, monkeypatch, num_before):
    late = LateWrite(rank, [1, 2], monkeypatch, num_before)
    rank.tier.delete([disk.key(1)])
    late.end()
    assert rank.read([1, 2]) == [MISS, OK]
    assert rank.write([3]) == [OK]


def test_what_is_not_deleted_while_it_is_written_is_stored(rank, disk, monkeypatch):
    late = LateWrite(rank, [1, 2], monkeypatch)
    rank.tier.delete([disk.key(3)])
    late.end()
    assert rank.read([1, 2]) == [OK, OK]
    assert rank.write([3]) == [ERROR]


def test_what_is_deleted_before_its_write_has_begun_takes_no_room(rank, disk):
    plan = rank.tier.snapshot()
    rank.tier.delete([disk.key(1)])
    plan.write(rank.filled([1, 2]), None)
    assert rank.read([1, 2]) == [MISS, OK]
    assert rank.write([3]) == [OK]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_stored_again_after_it_was_deleted_stays(rank, disk, monkeypatch, fails):
    """However the late write ends: the later one wins."""
    late = LateWrite(rank, [1], monkeypatch)
    late.fails = fails
    rank.tier.delete([disk.key(1)])
    assert rank.write([1]) == [OK]
    late.end()
    assert rank.read([1]) == [OK]
    assert rank.write([2]) == [OK]


def test_nothing_is_kept_of_plans_that_have_ended(rank, disk):
    rank.tier.snapshot().write(rank.filled([1]), None)
    assert not rank.tier._deleted
    rank.tier.delete([disk.key(1)])
    assert rank.write([1]) == [OK]
    assert rank.read([1]) == [OK]
