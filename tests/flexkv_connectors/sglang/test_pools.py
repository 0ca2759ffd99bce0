"""SGLang's host pools: what their pages are, and how they are stored."""

import msgspec
import numpy as np
import pytest
import torch
from engine_values import LAYERS, PAGES, deployment, keys_and_values, latents, storage

from flexkv_connectors.below_host.pool import open_store
from flexkv_connectors.sglang.pools import describe_kv, describe_sidecar, why_not_sidecar
from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.data.tiers.memory import PageMemory
from flexkv_core.plan import Status
from flexkv_core.testing.namespaces import make_namespace

KEYS = [bytes([number + 1]) * 32 for number in range(PAGES)]


def described(name="swa", pool=None, version="0.5.23", **place):
    pool = pool or keys_and_values()
    return describe_sidecar(name, pool, storage(**place), version, make_namespace())


@pytest.fixture
def pool():
    """A pool whose pages differ."""
    pool = keys_and_values()
    array = pool.kv_buffer.array
    array[...] = np.random.default_rng(1).integers(0, 1000, array.shape)
    return pool


def moved(store, submit, page_ids):
    return store.wait(submit(Blocks(KEYS, page_ids))).statuses


def test_pages_beside_the_kv_come_back_to_other_places(pool, tmp_path):
    rank = deployment(pool, {"ssd_cache_dir": str(tmp_path)}).rank
    store = open_store(rank, described(pool=pool), 16 << 20)
    store.wait_restored()
    array = pool.kv_buffer.array
    expected = array[:, ::-1].copy()
    assert moved(store, store.submit_save, range(PAGES)) == [Status.OK] * PAGES
    array[...] = 0
    assert store.lookup(KEYS) == [True] * PAGES
    assert moved(store, store.submit_load, range(PAGES - 1, -1, -1)) == [Status.OK] * PAGES
    assert (array == expected).all()
    store.close()


def test_the_kv_is_a_chain_of_cells_and_what_is_beside_it_stands_alone_as_it_is():
    kv, swa = describe_kv(deployment(), make_namespace()), described()
    assert (kv.access, swa.access) == (Access.CHAIN, Access.SINGLE)
    assert not isinstance(kv.content, PageMemory)
    assert isinstance(swa.content, PageMemory)


def test_the_kv_of_a_native_deployment_is_stored_as_it_is():
    native = deployment(options={"block_format": "native"})
    pool = describe_kv(native, make_namespace())
    assert pool.content is native.memory
    assert pool.stored_bytes == described().stored_bytes


def test_cells_take_the_room_of_their_pages():
    pool = describe_kv(deployment(options={"max_tp": 4}), make_namespace())
    assert len(pool.columns) == 4
    assert pool.stored_bytes >= PAGES * LAYERS * 16 * 4 * 32 * 2 * 2


def test_a_pool_is_what_the_kv_is_but_for_its_bytes():
    ours, kv = described().namespace, make_namespace()
    changed = {
        field for field in msgspec.structs.asdict(kv) if getattr(ours, field) != getattr(kv, field)
    }
    assert changed == {"cache_group", "block_format", "cell_layers"}
    assert ours.cache_group == "swa"


def of_other_numbers():
    pool = keys_and_values()
    pool.dtype = np.dtype(np.int16)
    return pool


@pytest.mark.parametrize(
    "change",
    [{"name": "draft"}, {"version": "0.5.24"}, {"tp_size": 2}, {"pool": of_other_numbers()}],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_over_bytes_is_part_of_the_identity(change):
    assert described(**change).namespace.digest != described().namespace.digest


def test_each_rank_has_a_column_of_its_own():
    columns = [described(tp_rank=rank, tp_size=2).columns[0].name for rank in range(2)]
    assert columns == ["heads-0-0.layers-0-0", "heads-1-1.layers-0-0"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({}, None),
        ({"tp_size": 2}, None),
        ({"is_mla_model": True}, None),
        ({"pp_size": 2}, "and its layers are spread over 2 pipeline stages"),
        ({"is_mla_model": True, "tp_size": 4}, "and only the first of its 4 ranks would write it"),
    ],
)
def test_places_that_cannot_be_served_are_named(place, reason):
    assert why_not_sidecar(storage(**place), "swa", keys_and_values()) == reason


@pytest.mark.parametrize(("name", "pool"), [("draft", latents()), ("mamba", keys_and_values())])
def test_beside_latents_what_is_the_same_on_all_ranks_or_stored_by_all_is_served(name, pool):
    assert why_not_sidecar(storage(is_mla_model=True, tp_size=4), name, pool) is None


def test_latents_beside_latents_are_the_same_on_all_ranks_of_every_degree():
    pools = [
        described("draft", latents(), is_mla_model=True, tp_rank=rank, tp_size=size)
        for rank, size in [(0, 1), (0, 4), (3, 4)]
    ]
    assert all(pool.is_replicated for pool in pools)
    assert len({(pool.namespace.digest, pool.columns) for pool in pools}) == 1


def test_what_is_beside_keys_and_values_is_each_ranks_own():
    assert not described("draft", latents(), tp_size=2).is_replicated


def test_on_rocm_nothing_beside_the_kv_is_stored(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "on ROCm" in why_not_sidecar(storage(), "swa", keys_and_values())
