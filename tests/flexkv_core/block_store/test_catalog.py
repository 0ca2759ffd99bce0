"""A rank that reads what another rank of its engine writes."""

import pytest
from store_case import StoreCase

from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.errors import TierError
from flexkv_core.plan import Status

NUM_KEYS = 5
KEYS = [bytes([number]) * 32 for number in range(NUM_KEYS)]


@pytest.fixture(params=[True, False], ids=["staged", "direct"])
def case(request, tmp_path):
    case = StoreCase(tmp_path, access=Access.CHAIN, is_staged=request.param, is_writer=False)
    yield case
    case.close()


def load(case, keys=KEYS):
    """Return how many leading pages are filled."""
    job_id = case.store.submit_load(Blocks(keys, range(len(keys))))
    return case.store.wait(job_id).statuses.count(Status.OK)


def put(case):
    case.put(KEYS, range(NUM_KEYS))


def test_blocks_are_found_behind_others_that_nobody_has_stored(case):
    case.writer.wait(case.writer.submit_save(Blocks(KEYS[2:], range(2, 5), KEYS[:2])))
    assert case.store.lookup(KEYS[2:], before=KEYS[:2]) == [True] * 3
    assert not any(case.store.lookup(KEYS))
    job_id = case.store.submit_load(Blocks(KEYS[2:], range(3), KEYS[:2]))
    assert case.store.wait(job_id).statuses == [Status.OK] * 3
    assert load(case) == 0


@pytest.mark.parametrize("keeps_name", [True, False])
def test_a_reset_of_all_ranks_forgets_what_was_before(case, keeps_name):
    put(case)
    case.store.reset(keeps_name=keeps_name)
    assert load(case) == 0
    case.writer.reset(keeps_name=keeps_name)
    assert not any(case.store.lookup(KEYS))
    put(case)
    assert all(case.store.lookup(KEYS))


def test_loads_are_counted_and_reported_once(case):
    put(case)
    load(case)
    [copy] = case.store.take_copies().loads
    num_bytes = sum(map(len, case.pages(range(NUM_KEYS))))
    assert (copy.num_blocks, copy.num_bytes) == (NUM_KEYS, num_bytes)
    counts = case.store.take_counts()
    assert counts["load_bytes"] == num_bytes
    assert counts["ssd_verified_blocks"] == NUM_KEYS
    assert case.store.take_copies() == ([], [])
    assert "load_bytes" not in case.store.take_counts()


def test_a_block_that_turns_out_to_be_another_is_counted_as_not_loaded(case, tmp_path):
    put(case)
    for slab in tmp_path.rglob("*.slab"):
        slab.write_bytes(slab.read_bytes().replace(KEYS[1], KEYS[2]))
    assert load(case) == 1
    counts = case.store.take_counts()
    assert counts["load_failed_blocks"] == NUM_KEYS - 1
    assert "ssd_corrupt_blocks" not in counts


def test_a_disk_that_fails_is_left_alone(case, monkeypatch):
    put(case)
    calls = []

    def broken(*_):
        calls.append(1)
        raise OSError(5, "broken")

    monkeypatch.setattr("flexkv_core.data.tiers.ssd.slab.SlabView.read", broken)
    assert [load(case) for _ in range(10)] == [0] * 10
    assert len(calls) < 10
    assert case.store.take_counts()["ssd_off"] == 1


def test_a_store_that_was_closed_finds_nothing(case):
    put(case)
    case.store.close()
    case.store.close()
    assert not any(case.store.lookup(KEYS))
    assert load(case) == 0


def test_a_quota_means_nothing_to_a_follower(case):
    case.store.resize(0)
    put(case)
    assert all(case.store.lookup(KEYS))


@pytest.mark.parametrize("call", ["close", "reset"])
def test_a_load_that_does_not_end_does_not_hang_who_asks_for_more(case, call, monkeypatch):
    options = {"keeps_name": True} if call == "reset" else {}
    with monkeypatch.context() as hanging:
        hanging.setattr(case.store._loads._lane, "drain", lambda _: False)
        with pytest.raises(TierError, match="a load has not ended"):
            getattr(case.store, call)(**options)
