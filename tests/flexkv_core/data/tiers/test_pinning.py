"""Pinning against a stand-in for the CUDA runtime."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from flexkv_core.data.tiers import pinning
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.pinning import CudaRuntime, PinnedPool, find_cuda_runtime
from flexkv_core.errors import TierError
from flexkv_core.testing.cuda_runtime import FakeCuda


@pytest.fixture
def pool(monkeypatch):
    """Five slots of three pages, of which two fit a chunk."""
    monkeypatch.setattr(pinning, "_CHUNK_BYTES", 7 * 4096)
    pool = HostPool.create(5, 3 * 4096)
    yield pool
    pool.close()


def test_pieces_are_adjacent_and_cover_every_slot(pool):
    cuda = FakeCuda()
    pinned = PinnedPool(pool, cuda.runtime)
    base = np.frombuffer(pool.buffer, np.uint8).ctypes.data
    slot = 3 * 4096
    assert cuda.pinned == {base: 2 * slot, base + 2 * slot: 2 * slot, base + 4 * slot: slot}
    pinned.close()


def test_pieces_are_visible_to_every_context_and_kernel(pool):
    cuda = FakeCuda()
    PinnedPool(pool, cuda.runtime)
    portable, mapped = 1, 2
    assert cuda.flags == portable | mapped


def test_a_slot_larger_than_a_chunk_is_one_piece(pool, monkeypatch):
    monkeypatch.setattr(pinning, "_CHUNK_BYTES", 4096)
    cuda = FakeCuda()
    PinnedPool(pool, cuda.runtime)
    assert list(cuda.pinned.values()) == [3 * 4096] * 5


def test_closing_unpins_every_piece_once(pool):
    cuda = FakeCuda()
    pinned = PinnedPool(pool, cuda.runtime)
    pinned.close()
    pinned.close()
    assert cuda.pinned == {}


def test_a_refusal_leaves_nothing_pinned_and_says_what_to_do(pool):
    cuda = FakeCuda(refuses=1)
    with pytest.raises(TierError, match=r"error 2.*ulimit -l"):
        PinnedPool(pool, cuda.runtime)
    assert cuda.pinned == {}


def test_without_torch_there_is_no_runtime(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert find_cuda_runtime() is None


@pytest.mark.parametrize("is_available", [False, True])
def test_the_runtime_is_that_of_torch_if_it_sees_a_gpu(monkeypatch, is_available):
    cudart = SimpleNamespace(cudaHostRegister="register", cudaHostUnregister="unregister")
    cuda = SimpleNamespace(is_available=lambda: is_available, cudart=lambda: cudart)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    expected = CudaRuntime("register", "unregister") if is_available else None
    assert find_cuda_runtime() == expected


def test_the_data_plane_does_not_import_torch():
    modules = ("tiers.pinning", "worker", "transfer.cpu_lane")
    names = ", ".join(f"flexkv_core.data.{module}" for module in modules)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
