"""Random operations while every system call fails in every way: no wrong byte, nothing is held.

A failure names its kind, seed and operation; `soak(kind, seed, ...)` repeats it exactly.
"""

from pathlib import Path

import pytest
from session_world import SessionWorld
from store_world import StoreWorld
from world import soak

KINDS = [SessionWorld, StoreWorld]
NIGHTLY_OPERATIONS = 1_000_000
NIGHTLY_SEEDS = range(16)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = open_files()
    yield
    assert open_files() == before


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_short_soak(kind, seed, tmp_path, monkeypatch):
    soak(kind, seed, 400, tmp_path, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", NIGHTLY_SEEDS)
def test_a_long_soak(kind, seed, tmp_path, monkeypatch):
    """All of them together are a million operations."""
    num_operations = NIGHTLY_OPERATIONS // len(KINDS) // len(NIGHTLY_SEEDS)
    soak(kind, seed, num_operations, tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_a_run(kind, tmp_path, monkeypatch):
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with monkeypatch.context() as patch:
            world = soak(kind, 5, 200, tmp_path / name, patch)
        runs.append((world.seen, world.calls.failed, world.simulation.now_s))
    assert runs[0] == runs[1]
