"""A rank's stores share the room, and whatever happens to all of them."""

import msgspec
import pytest
from host_tier import KEYS, PAGES, HostPool, load, rank, save

from flexkv_connectors.below_host.stores import PoolStores
from flexkv_core.block_store import job_queue
from flexkv_core.block_store.blocks import Access
from flexkv_core.errors import TierError
from flexkv_core.testing.namespaces import make_namespace

NAMESPACE = make_namespace()


@pytest.fixture
def stores(tmp_path):
    """A rank that has as much beside its KV as it has of KV."""
    stores = opened(tmp_path)
    yield stores
    stores.close()


def opened(directory, **place):
    stores = PoolStores(rank(directory, **place))
    stores.add(HostPool().describe(NAMESPACE))
    stores.get("kv").wait_restored()
    return stores


def add(stores, name, **changes):
    namespace = msgspec.structs.replace(NAMESPACE, cache_group=name)
    stores.add(HostPool().describe(namespace, name, Access.SINGLE, **changes))
    stores.get(name).wait_restored()


def capacities(stores):
    """Return how much room each store has."""
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
    for _, store in stores:
        assert all(save(store))
    stores.reset(keeps_name=True)
    for _, store in stores:
        assert not any(store.lookup(KEYS))


def test_what_was_moved_is_reported_for_each(stores):
    add(stores, "swa")
    save(stores.get("swa"))
    saves = {activity.pool: activity.copies.saves for activity in stores.take_activities()}
    assert saves["kv"] == []
    assert [copy.num_blocks for copy in saves["swa"]] == [PAGES]


def test_closed_stores_hold_no_file(stores, tmp_path):
    add(stores, "swa")
    for _, store in stores:
        save(store)
    stores.close()
    again = opened(tmp_path)
    add(again, "swa")
    for _, store in again:
        assert all(store.lookup(KEYS))
    again.close()


def test_a_pool_that_every_replica_stores_takes_room_for_all_of_them(tmp_path):
    stores = opened(tmp_path, num_replicas=3)
    (alone,) = capacities(stores).values()
    add(stores, "mamba")
    assert all(0.24 < capacity / alone < 0.26 for capacity in capacities(stores).values())
    stores.close()


@pytest.mark.parametrize("call", ["reset", "close"])
def test_one_store_that_does_not_end_its_call_keeps_no_other_from_it(stores, call, monkeypatch):
    add(stores, "swa")
    assert all(save(stores.get("swa")))
    monkeypatch.setattr(job_queue, "_GRACE_S", 0.0)
    saves = stores.get("kv")._saves
    monkeypatch.setattr(saves, "_limit_s", 0.0)
    monkeypatch.setattr(saves._lane, "drain", lambda _: False)
    options = {"keeps_name": True} if call == "reset" else {}
    with pytest.raises(TierError, match="a save has not ended"):
        getattr(stores, call)(**options)
    monkeypatch.undo()
    assert not any(load(stores.get("swa")))
