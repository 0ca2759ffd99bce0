"""Random operations while every system call fails in every way: no wrong byte, nothing is held.

A failure names its kind, seed and operation; `soak(kind, seed, ...)` repeats it exactly.
"""

import re

import pytest
from session_world import SessionWorld
from store_world import StoreWorld
from world import soak

from flexkv_core.control.manager import CacheManager
from flexkv_core.data.tiers.ssd import slab, slots, space
from flexkv_core.data.transfer.staging import StagingRing
from flexkv_core.data.transfer.tier_lane import TierLane

KINDS = [SessionWorld, StoreWorld]
NIGHTLY_OPERATIONS = 1_000_000
NIGHTLY_SEEDS = range(16)


@pytest.fixture(autouse=True)
def nothing_is_left(open_files):
    before = open_files()
    yield
    assert not open_files() - before


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


def check_nothing(patch):
    patch.setattr(slab, "checksum", lambda *_: 0)


def give_slots_twice(patch):
    def take(self, taken):
        self._released.update(taken)
        self.pin(taken)
        return taken

    patch.setattr(slots.SlotTable, "_take", take)


def close_slabs_in_use(patch):
    patch.setattr(slots.SlotTable, "is_idle", True)


def leave_files_open(patch):
    patch.setattr(slab.Slab, "close", lambda _: None)


def keep_leases(patch):
    patch.setattr(CacheManager, "release", lambda *_: None)


def lose_staging(patch):
    give_back, num_lost = StagingRing.give_back, iter([1])  # once: without any, nothing goes on

    def lose(ring, places):
        give_back(ring, places[next(num_lost, 0) :])

    patch.setattr(StagingRing, "give_back", lose)


def let_threads_end(patch):
    patch.setattr(TierLane, "_replace_thread", lambda _: None)


def retry_late(patch):
    patch.setattr(space, "_RETRY_S", 600.0)


@pytest.mark.parametrize(
    ("kind", "spoil", "reason"),
    [
        (StoreWorld, check_nothing, "wrong bytes"),
        (SessionWorld, give_slots_twice, "a slot in use is written|damaged|slots are lost"),
        (SessionWorld, close_slabs_in_use, "Bad file descriptor|not in list"),
        (SessionWorld, leave_files_open, "left open|[.]slab"),
        (SessionWorld, keep_leases, "_claims"),
        (StoreWorld, lose_staging, "staging is lost"),
        (SessionWorld, let_threads_end, "it never comes to an end"),
        (SessionWorld, retry_late, "a tier has not come back"),
    ],
)
def test_what_breaks_a_promise_is_noticed(kind, spoil, reason, tmp_path, monkeypatch):
    reasons = []
    for seed in range(40):
        root = tmp_path / str(seed)
        root.mkdir()
        try:
            with monkeypatch.context() as patch:
                soak(kind, seed, 1000, root, patch, spoil)
        except AssertionError as error:
            reasons.append(str(error))
            break
    assert re.search(reason, "".join(reasons)), reasons
