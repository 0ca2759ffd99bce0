"""Staging memory goes with its store: an engine may detach its storage while it serves."""

from pathlib import Path

import pytest
from host_tier import HostPool, load, rank, save

from flexkv_connectors.below_host.pool import open_store
from flexkv_core.errors import TierError
from flexkv_core.testing.namespaces import make_namespace


def staging_memory():
    """Return the inodes of host pools that this process has open, and of those it has mapped."""
    files = [file for file in Path("/proc/self/fd").iterdir() if "flexkv-host" in target(file)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {int(line.split()[4]) for line in maps if "flexkv-host" in line}
    return mapped | {file.stat().st_ino for file in files}


def target(file):
    return str(file.readlink()) if file.is_symlink() else ""


def test_a_store_that_is_closed_gives_its_memory_back(tmp_path):
    before, pool = staging_memory(), HostPool()
    store = open_store(rank(tmp_path), pool.describe(make_namespace()), 1 << 30)
    opened = staging_memory() - before
    assert len(opened) == 1
    store.close()
    del store
    assert not staging_memory() & opened


def test_a_store_that_cannot_be_opened_keeps_no_memory(tmp_path):
    (tmp_path / "file").touch()
    before, pool = staging_memory(), HostPool()
    with pytest.raises(TierError):
        open_store(rank(tmp_path / "file"), pool.describe(make_namespace()), 1 << 30)
    assert staging_memory() <= before


def test_a_native_store_needs_no_memory_and_its_pages_come_back(tmp_path):
    before, pool = staging_memory(), HostPool(is_native=True)
    store = open_store(rank(tmp_path), pool.describe(make_namespace()), 1 << 30)
    store.wait_restored()
    assert staging_memory() <= before
    expected = pool.memory.copy()
    assert all(save(store))
    pool.memory[:] = 0
    assert all(load(store))
    assert (pool.memory == expected).all()
    store.close()


@pytest.mark.parametrize("is_native", [True, False])
def test_replicas_find_what_the_first_of_them_has_stored(tmp_path, is_native):
    pools = [HostPool(is_native=is_native, seed=seed) for seed in range(2)]
    ranks = [rank(tmp_path, num_replicas=2, is_follower=follows) for follows in (False, True)]
    writer, follower = (
        open_store(place, pool.describe(make_namespace()), 1 << 30)
        for place, pool in zip(ranks, pools, strict=True)
    )
    writer.wait_restored()
    assert all(save(follower))  # the writer is asked for the same
    assert not any(load(follower))
    assert all(save(writer))
    assert all(load(follower))
    assert (pools[0].memory == pools[1].memory).all()
    follower.close()
    writer.close()
