"""A rank that reads what another rank of its engine writes, asked as SGLang asks every rank."""

import numpy as np
import pytest
from engine_values import PAGES, deployment, latents

from flexkv_connectors.sglang.opening import open_store
from flexkv_core.block_store import direction
from flexkv_core.errors import TierError
from flexkv_core.testing.namespaces import make_namespace

KEYS = [bytes([number]) * 32 for number in range(PAGES)]


class Rank:
    """A store, and the content of its pages."""

    def __init__(self, directory, rank, **options):
        self.pool = latents()
        self.array = self.pool.kv_buffer.array
        self.array[...] = np.random.default_rng(rank).integers(0, 1000, self.array.shape)
        place = {"tp_rank": rank, "tp_size": 2, "is_mla_model": True}
        options = {"ssd_cache_dir": str(directory)} | options
        self.store = open_store(deployment(self.pool, options, **place), make_namespace())
        self.store.wait_restored()


@pytest.fixture(params=["cells", "native"])
def ranks(request, tmp_path):
    """The rank that writes, and the one that follows."""
    ranks = [Rank(tmp_path, rank, block_format=request.param) for rank in (0, 1)]
    yield ranks
    for rank in ranks:
        rank.store.close()


def save(rank):
    assert rank.store.save(KEYS, range(PAGES)) == PAGES


def test_what_the_writer_has_saved_is_found_and_loaded(ranks):
    writer, follower = ranks
    assert follower.store.find(KEYS) == 0
    save(writer)
    assert follower.store.find(KEYS) == PAGES
    assert follower.store.load(KEYS, range(PAGES)) == PAGES
    assert (follower.array == writer.array).all()


def test_the_last_blocks_of_a_chain_are_loaded_behind_those_before(ranks):
    writer, follower = ranks
    save(writer)
    assert follower.store.load(KEYS, [2]) == 1
    assert (follower.array[2] == writer.array[PAGES - 1]).all()


def test_nothing_is_loaded_behind_a_block_that_is_missing(ranks):
    writer, follower = ranks
    save(writer)
    before = follower.array.copy()
    assert follower.store.load([b"?" * 32, *KEYS], range(PAGES)) == 0
    assert follower.store.load([*KEYS, b"?" * 32], [0]) == 0
    assert (follower.array == before).all()


def test_as_much_as_there_is_is_loaded(ranks):
    writer, follower = ranks
    writer.store.save(KEYS[:2], [0, 1])
    before = follower.array[2].copy()
    assert follower.store.load(KEYS, range(PAGES)) == 2
    assert (follower.array[:2] == writer.array[:2]).all()
    assert (follower.array[2] == before).all()


def test_to_save_is_the_writers_business(ranks):
    writer, follower = ranks
    assert follower.store.save(KEYS, [0, 1]) == 2
    assert follower.store.find(KEYS) == writer.store.find(KEYS) == 0


@pytest.mark.parametrize("keeps_name", [True, False])
def test_a_reset_of_all_ranks_forgets_what_was_before(ranks, keeps_name):
    writer, follower = ranks
    save(writer)
    follower.store.reset(keeps_name=keeps_name)
    assert follower.store.load(KEYS, range(PAGES)) == 0
    writer.store.reset(keeps_name=keeps_name)
    assert follower.store.find(KEYS) == 0
    save(writer)
    assert follower.store.find(KEYS) == PAGES


def test_loads_are_counted_and_reported_once(ranks):
    writer, follower = ranks
    save(writer)
    follower.store.load(KEYS, range(PAGES))
    [copy] = follower.store.take_copies().loads
    assert (copy.num_blocks, copy.num_bytes) == (PAGES, follower.array.nbytes)
    counts = follower.store.take_counts()
    assert counts["load_bytes"] == follower.array.nbytes
    assert counts["ssd_verified_blocks"] == PAGES
    assert follower.store.take_copies() == ([], [])
    assert "load_bytes" not in follower.store.take_counts()


def test_a_block_that_turns_out_to_be_another_is_counted_as_not_loaded(ranks, tmp_path):
    writer, follower = ranks
    save(writer)
    for slab in tmp_path.rglob("*.slab"):
        slab.write_bytes(slab.read_bytes().replace(KEYS[1], KEYS[2]))
    assert follower.store.load(KEYS, range(PAGES)) == 1
    counts = follower.store.take_counts()
    assert counts["load_failed_blocks"] == PAGES - 1
    assert "ssd_corrupt_blocks" not in counts


def test_a_disk_that_fails_is_left_alone(ranks, monkeypatch):
    writer, follower = ranks
    save(writer)
    calls = []

    def broken(*_):
        calls.append(1)
        raise OSError(5, "broken")

    monkeypatch.setattr("flexkv_core.data.tiers.ssd.slab.SlabView.read", broken)
    assert [follower.store.load(KEYS, range(PAGES)) for _ in range(10)] == [0] * 10
    assert len(calls) < 10
    assert follower.store.take_counts()["ssd_off"] == 1


def test_a_store_that_was_closed_finds_nothing(ranks):
    writer, follower = ranks
    save(writer)
    follower.store.close()
    follower.store.close()
    assert follower.store.find(KEYS) == follower.store.load(KEYS, range(PAGES)) == 0


@pytest.mark.parametrize("call", ["close", "reset"])
def test_a_load_that_does_not_end_does_not_hang_who_asks_for_more(ranks, call, monkeypatch):
    _, follower = ranks
    monkeypatch.setattr(direction, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(follower.store._loads, "_limit_s", 0.0)
    options = {"keeps_name": True} if call == "reset" else {}
    with follower.store._loads.idle(), pytest.raises(TierError, match="does not end"):
        getattr(follower.store, call)(**options)


def test_a_quota_means_nothing_to_a_follower(ranks):
    writer, follower = ranks
    follower.store.resize(0)
    save(writer)
    assert follower.store.find(KEYS) == PAGES
