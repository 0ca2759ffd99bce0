"""Stores that are opened once the model is known: what is said before that counts then."""

import pytest
from host_tier import KEYS, HostPool, rank, save

from flexkv_connectors.below_host.deferred_stores import DeferredStores
from flexkv_connectors.below_host.stores import PoolStores
from flexkv_core.block_store.blocks import Access
from flexkv_core.errors import ConfigError, TierError
from flexkv_core.testing.namespaces import make_namespace

NAMED = {"weight_version": "v1"}


class HeldOrigin:
    """Says what the blocks are blocks of when a test wants it."""

    blank = make_namespace(model="", **NAMED)

    def find(self, _, then):
        self.then = then
        return self

    def tell_again(self, error):
        self.error = error

    def close(self):
        """Go on: a thread may have been at the last line."""

    def tell(self):
        self.then(make_namespace(**NAMED))


@pytest.fixture
def start(tmp_path):
    """Return a function that makes the stores of one engine after the other."""
    opened = []

    def start():
        while opened:
            opened.pop().close()
        origin, pool = HeldOrigin(), HostPool()
        stores = DeferredStores(rank(tmp_path, options=NAMED), origin, pool.describe)
        opened.append(stores)
        return stores, origin

    yield start
    opened.pop().close()


def swa(namespace):
    return HostPool(is_native=True).describe(namespace, "swa", Access.SINGLE)


def known(stores, origin):
    """Let the model be known; return the store of its KV once all of it is found."""
    origin.tell()
    kv = stores.opened.get("kv")
    kv.wait_restored()
    return kv


@pytest.fixture
def stored(start):
    """Let an engine store its pages."""
    assert all(save(known(*start())))


def test_nothing_is_open_before_the_model_is_known(start):
    stores, origin = start()
    assert stores.opened is None
    assert known(stores, origin) is stores.opened.get("kv")


def test_what_earlier_engines_stored_is_found_then(start, stored):
    assert all(known(*start()).lookup(KEYS))


@pytest.mark.parametrize("keeps_name", [False, True])
def test_a_reset_before_that_counts(start, stored, keeps_name):
    stores, origin = start()
    stores.reset(keeps_name=keeps_name)
    assert not any(known(stores, origin).lookup(KEYS))


def test_a_reset_counts_for_the_next_engine_if_this_one_never_knows_its_model(start, stored):
    stores, _ = start()
    stores.reset(keeps_name=True)
    assert not any(known(*start()).lookup(KEYS))


def test_a_pool_that_was_added_before_is_opened_with_the_others(start):
    stores, origin = start()
    stores.add(swa)
    origin.tell()
    assert [name for name, _ in stores.opened] == ["kv", "swa"]


def test_a_pool_that_is_added_later_is_opened_at_once(start):
    stores, origin = start()
    origin.tell()
    stores.add(swa)
    assert [name for name, _ in stores.opened] == ["kv", "swa"]


def test_a_pool_that_cannot_be_described_is_refused_at_once(start):
    def refuse(_):
        raise ConfigError("no such pool")

    stores, _ = start()
    with pytest.raises(ConfigError, match="no such pool"):
        stores.add(refuse)


def test_a_model_that_becomes_known_after_the_end_opens_nothing(start):
    stores, origin = start()
    stores.close()
    origin.tell()
    assert stores.opened is None


def test_of_stores_that_cannot_all_be_opened_none_stays_open(start, monkeypatch):
    def refuse_one(namespace):
        if namespace.model:
            raise ConfigError("no room")
        return swa(namespace)

    closed, close = [], PoolStores.close
    monkeypatch.setattr(PoolStores, "close", lambda stores: closed.append(stores) or close(stores))
    stores, origin = start()
    stores.add(refuse_one)
    with pytest.raises(ConfigError, match="no room"):
        origin.tell()
    assert stores.opened is None
    assert len(closed) == 1


def test_a_directory_that_cannot_be_used_now_is_used_later(start, tmp_path):
    (tmp_path / ".lock").mkdir()
    stores, origin = start()
    with pytest.raises(TierError, match=r"Is a directory"):
        origin.tell()
    assert stores.opened is None
    (tmp_path / ".lock").rmdir()
    assert all(save(known(stores, origin)))


def test_a_directory_that_is_a_file_is_refused_at_the_start(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ConfigError, match="ssd_cache_dir cannot be used"):
        DeferredStores(rank(path, options=NAMED), HeldOrigin(), HostPool().describe)


def test_a_pool_that_cannot_be_opened_now_is_opened_with_the_others_later(start, tmp_path):
    """KV without the pools beside it is of no use, so none of it is served meanwhile."""
    stores, origin = start()
    origin.tell()
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    stores.add(swa)
    assert stores.opened is None
    assert "Is a directory" in str(origin.error)
    (tmp_path / ".lock").rmdir()
    origin.tell()
    assert [name for name, _ in stores.opened] == ["kv", "swa"]


def test_a_reset_counts_for_stores_that_are_opened_once_more(start, stored, tmp_path):
    stores, origin = start()
    known(stores, origin)
    stores.reset(keeps_name=False)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    stores.add(swa)
    (tmp_path / ".lock").rmdir()
    assert known(stores, origin).lookup(KEYS) == [False] * len(KEYS)
