"""Staging memory goes with its store: SGLang attaches and detaches storages while it serves."""

from pathlib import Path

import numpy as np
import pytest
from engine_values import PAGES, deployment, keys_and_values

from flexkv_connectors.sglang.opening import open_store
from flexkv_core.errors import ConfigError
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
    before, pool = staging_memory(), keys_and_values()
    store = open_store(deployment(pool, {"ssd_cache_dir": str(tmp_path)}), make_namespace())
    opened = staging_memory() - before
    assert len(opened) == 1
    store.close()
    del store
    assert not staging_memory() & opened


def test_a_store_that_cannot_be_opened_keeps_no_memory(tmp_path):
    (tmp_path / "file").touch()
    before, pool = staging_memory(), keys_and_values()
    wanted = deployment(pool, {"ssd_cache_dir": str(tmp_path / "file")})
    with pytest.raises(ConfigError):
        open_store(wanted, make_namespace())
    assert staging_memory() <= before


def test_a_native_store_needs_no_memory_and_its_pages_come_back(tmp_path):
    before, pool = staging_memory(), keys_and_values()
    array = pool.kv_buffer.array
    array[...] = np.random.default_rng(1).integers(0, 1000, array.shape)
    options = {"ssd_cache_dir": str(tmp_path), "block_format": "native"}
    store = open_store(deployment(pool, options), make_namespace())
    store.wait_restored()
    assert staging_memory() <= before
    keys, expected = [bytes([number]) * 32 for number in range(PAGES)], array.copy()
    assert store.save(keys, range(PAGES)) == PAGES
    array[...] = 0
    assert store.load(keys, range(PAGES)) == PAGES
    assert (array == expected).all()
    store.close()
