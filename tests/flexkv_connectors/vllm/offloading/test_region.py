"""How large vLLM's host memory is by default, what keeps it from fitting, and whose name goes."""

import os
from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.offloading import region
from flexkv_core.data.host_memory import HostMemory

GIB = 2**30
ROW = 2**20


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    """Return a function that sets what shared memory is in all and has free; here is its folder."""

    def have(total_bytes, free_bytes, limit_bytes=1024 * GIB, free_memory=1024 * GIB):
        page = 4096
        status = SimpleNamespace(
            f_blocks=total_bytes // page, f_bavail=free_bytes // page, f_frsize=page
        )
        monkeypatch.setattr(os, "statvfs", lambda _: status)
        monkeypatch.setattr(region, "limit_bytes", lambda: limit_bytes)
        memory = HostMemory(free_memory, limit_bytes, "this container may use 8.0 GiB")
        monkeypatch.setattr(region, "host_memory", lambda: memory)
        return tmp_path

    return have


def test_the_default_is_half_of_shared_memory_whatever_is_free(shared_memory):
    assert region.default_region_bytes(1, shared_memory(64 * GIB, 0)) == 32 * GIB


def test_the_default_is_divided_among_the_engines_of_a_node(shared_memory):
    assert region.default_region_bytes(4, shared_memory(64 * GIB, 0)) == 8 * GIB


def test_a_container_may_have_less_memory_than_its_shared_memory_says(shared_memory):
    assert (
        region.default_region_bytes(1, shared_memory(64 * GIB, 0, limit_bytes=8 * GIB)) == 4 * GIB
    )


def test_a_region_that_does_not_fit_names_the_option_of_the_container(shared_memory):
    reason = region.why_no_room("engine", 2 * GIB, ROW, shared_memory(64 * GIB, GIB))
    assert reason is not None
    assert "--shm-size" in reason


def test_a_region_that_the_container_has_no_memory_for_names_its_limit(shared_memory):
    reason = region.why_no_room(
        "engine", 2 * GIB, ROW, shared_memory(64 * GIB, 64 * GIB, 8 * GIB, GIB)
    )
    assert reason is not None
    assert "only 1.00 are free here (this container may use 8.0 GiB)" in reason


def test_a_region_without_room_for_one_row_names_both(shared_memory):
    folder = shared_memory(64 * GIB, GIB)
    reason = region.why_no_room("engine", ROW - 1, ROW, folder)
    assert reason is not None
    assert "takes 1.0 MiB" in reason
    assert region.why_no_room("engine", ROW, ROW, folder) is None


def test_a_region_that_fits_is_no_reason(shared_memory):
    assert region.why_no_room("engine", GIB, ROW, shared_memory(64 * GIB, GIB)) is None


def test_a_region_that_another_rank_has_made_fits(shared_memory):
    folder = shared_memory(64 * GIB, 0)
    (folder / "vllm_offload_engine.mmap").touch()
    assert region.why_no_room("engine", GIB, ROW, folder) is None
    assert region.why_no_room("other", GIB, ROW, folder) is not None


def test_only_the_names_of_one_engine_are_forgotten(tmp_path):
    for name in ("engine.mmap", "engine.mmap.1", "engine-2.mmap", "other.mmap"):
        (tmp_path / f"vllm_offload_{name}").touch()
    region.forget_name("engine", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "vllm_offload_engine-2.mmap",
        "vllm_offload_other.mmap",
    }
