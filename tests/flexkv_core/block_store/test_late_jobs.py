"""Jobs that were given up, and end all the same."""

import os
import threading

import pytest
from store_case import StoreCase

from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan

KEYS = [bytes([number]) * 32 for number in range(1, 4)]
FIRST, NEXT, MISSING = (bytes([number]) * 32 for number in range(7, 10))
WAIT_S = 30


@pytest.fixture
def case(tmp_path):
    case = StoreCase(tmp_path, access=Access.CHAIN, is_staged=True, is_writer=True)
    yield case
    case.close()


@pytest.mark.xfail(strict=True, reason="it is written after the tier was told to forget it")
def test_a_block_that_is_stored_after_its_save_was_given_up_takes_no_room(case, monkeypatch):
    """Nobody would find it, nor evict it: a disk that was slow would soon be full for good."""
    assert save(case, [FIRST]) == [Status.OK]
    begun, gate, pwritev = threading.Event(), threading.Event(), os.pwritev

    def wait_and_write(*arguments):
        begun.set()
        gate.wait(WAIT_S)
        return pwritev(*arguments)

    monkeypatch.setattr(os, "pwritev", wait_and_write)
    case.store.submit_save(Blocks(KEYS, [0, 1, 2]), case.clock() + 1)
    assert begun.wait(WAIT_S)
    case.clock.advance(2)
    (late,) = case.store.poll()
    assert late.statuses == [Status.TIMEOUT] * 3
    nothing = case.store.submit_load(Blocks([MISSING], [4]))
    assert case.store.wait(nothing).statuses == [Status.MISS]
    gate.set()
    assert case.store._saves._lane.drain(WAIT_S)
    assert save(case, [NEXT]) == [Status.OK]
    (column,) = case.tier.inner._columns
    assert [key in column for key in KEYS] == case.store.lookup(KEYS)


def test_blocks_that_were_read_and_come_too_late_reach_no_page(case):
    """The lane's own limit has passed: no step of the plan has a deadline that would stop it."""
    assert save(case, KEYS) == [Status.OK] * 3
    before = case.pages([9, 10, 11])
    lane = case.store._loads._lane
    stored, pages = StoredBlocks("ssd", KEYS), EnginePages([9, 10, 11])
    lane.submit(TransferPlan(job_id=2, source=stored, target=pages, num_blocks=3))
    assert lane._far.drain(WAIT_S)
    case.clock.advance(61)
    (late,) = lane.poll()
    assert (late.job_id, late.status) == (2, Status.TIMEOUT)
    assert case.pages([9, 10, 11]) == before


def save(case, keys):
    return case.store.wait(case.store.submit_save(Blocks(keys, range(len(keys))))).statuses
