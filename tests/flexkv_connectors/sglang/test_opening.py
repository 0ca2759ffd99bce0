"""Staging memory goes with its store: SGLang attaches and detaches storages while it serves."""

from pathlib import Path

import pytest
from engine_values import deployment, keys_and_values

from flexkv_connectors.sglang.opening import open_store
from flexkv_core.errors import ConfigError
from flexkv_core.testing.namespaces import make_namespace


def staging_memory():
    """Return the open files and the mappings of host pools in this process."""
    files = [file for file in Path("/proc/self/fd").iterdir() if "flexkv-host" in target(file)]
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(files), sum("flexkv-host" in line for line in maps)


def target(file):
    return str(file.readlink()) if file.is_symlink() else ""


def test_a_store_that_is_closed_gives_its_memory_back(tmp_path):
    before, pool = staging_memory(), keys_and_values()
    store = open_store(deployment(pool, {"ssd_cache_dir": str(tmp_path)}), make_namespace())
    assert staging_memory() != before
    store.close()
    del store
    assert staging_memory() == before


def test_a_store_that_cannot_be_opened_keeps_no_memory(tmp_path):
    (tmp_path / "file").touch()
    before, pool = staging_memory(), keys_and_values()
    wanted = deployment(pool, {"ssd_cache_dir": str(tmp_path / "file")})
    with pytest.raises(ConfigError):
        open_store(wanted, make_namespace())
    assert staging_memory() == before
