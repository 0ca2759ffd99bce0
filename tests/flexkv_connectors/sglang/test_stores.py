"""A rank's stores share the room, and whatever happens to all of them."""

import pytest
from engine_values import PAGES, deployment, keys_and_values, storage

from flexkv_connectors.sglang.sidecars import describe
from flexkv_connectors.sglang.stores import Stores
from flexkv_core.block_store import direction
from flexkv_core.errors import TierError
from flexkv_core.testing.namespaces import make_namespace

KEYS = [bytes([number + 1]) * 32 for number in range(PAGES)]


@pytest.fixture
def stores(tmp_path):
    """A rank that has as much beside its KV as it has of KV."""
    pool = keys_and_values()
    options = {"ssd_cache_dir": str(tmp_path), "ssd_cache_gb": 1}
    stores = Stores(deployment(pool, options), make_namespace())
    stores.kv.wait_restored()
    yield stores
    stores.close()


def add(stores, name):
    pool = keys_and_values()
    stores.add(describe(name, pool, storage(), "0.5.23", stores.namespace))
    stores.sidecars[name].store.wait_restored()


def capacities(stores):
    """Return what each store has told of its room."""
    counts = {activity.pool: activity.changes for activity in stores.take_activities()}
    return {pool: changes["ssd_capacity_blocks"] for pool, changes in counts.items()}


def test_the_kv_alone_has_all_the_room_and_divides_it_with_what_comes(stores):
    (alone,) = capacities(stores).values()
    add(stores, "swa")
    half = capacities(stores)
    assert half.keys() == {"kv", "swa"}
    assert all(0.49 < capacity / alone < 0.51 for capacity in half.values())
    add(stores, "mamba")
    third = capacities(stores)
    assert all(0.32 < capacity / alone < 0.34 for capacity in third.values())


def test_a_reset_empties_all(stores):
    add(stores, "swa")
    sidecar = stores.sidecars["swa"].store
    assert stores.kv.save(KEYS, range(PAGES)) == PAGES
    assert all(sidecar.save(KEYS, range(PAGES)))
    stores.reset(keeps_name=True)
    assert stores.kv.find(KEYS) == 0
    assert sidecar.find(KEYS) == [False] * PAGES


def test_what_was_moved_is_told_of_each(stores):
    add(stores, "swa")
    stores.sidecars["swa"].store.save(KEYS, range(PAGES))
    saves = {activity.pool: activity.copies.saves for activity in stores.take_activities()}
    assert saves["kv"] == []
    assert [copy.num_blocks for copy in saves["swa"]] == [PAGES]


def test_closed_stores_hold_no_file(stores, tmp_path):
    add(stores, "swa")
    stores.kv.save(KEYS, range(PAGES))
    stores.sidecars["swa"].store.save(KEYS, range(PAGES))
    stores.close()
    again = Stores(deployment(options={"ssd_cache_dir": str(tmp_path)}), make_namespace())
    again.kv.wait_restored()
    add(again, "swa")
    assert again.kv.find(KEYS) == PAGES
    assert all(again.sidecars["swa"].store.find(KEYS))
    again.close()


@pytest.mark.parametrize("call", ["reset", "close"])
def test_one_store_that_does_not_end_its_call_keeps_no_other_from_it(stores, call, monkeypatch):
    add(stores, "swa")
    sidecar = stores.sidecars["swa"].store
    assert all(sidecar.save(KEYS, range(PAGES)))
    monkeypatch.setattr(direction, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(stores.kv._saves, "_limit_s", 0.0)
    options = {"keeps_name": True} if call == "reset" else {}
    with stores.kv._saves.idle(), pytest.raises(TierError, match="a save does not end"):
        getattr(stores, call)(**options)
    assert sidecar.load(KEYS, range(PAGES)) == [False] * PAGES
