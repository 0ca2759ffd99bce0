"""Rows are copied alike one by one and in a batch; a batch is asked for as the real wheels want it.

The runtime is a stand-in that copies at once and refuses what the real one refuses.
"""
# ruff: noqa: N802, N803, N815 the names are CUDA's

import ctypes
import importlib.util
import inspect
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from flexkv_core.errors import TierError

torch = pytest.importorskip("torch", reason="needs torch (`make setup-engine`)")
from flexkv_core.data.transfer.row_copies import (  # noqa: E402 imports torch
    BatchedCopy,
    copy_one_by_one,
    find_row_copy,
)

SIGNATURE = "dsts srcs sizes count attrs attrsIdxs numAttrs stream"
"""Of cudaMemcpyBatchAsync in cuda-bindings 12.9.10 and 13.5.0."""

STREAM = SimpleNamespace(cuda_stream=0x5EED)
STREAM_ORDER = 1


class FakeRuntime:
    """`cuda.bindings.runtime`, as far as a batch needs it."""

    cudaMemcpySrcAccessOrder = SimpleNamespace(cudaMemcpySrcAccessOrderStream=STREAM_ORDER)
    cudaMemcpyAttributes = SimpleNamespace

    def __init__(self, driver=13000, bindings=13050, code=0):
        self.versions = driver, bindings
        self.code = code
        self.num_batches = 0

    def cudaDriverGetVersion(self):
        return 0, self.versions[0]

    def cudaRuntimeGetVersion(self):
        return 0, self.versions[1]

    def cudaMemcpyBatchAsync(self, dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, stream):
        assert all(type(number) is int for number in (*dsts, *srcs, *sizes, *attrsIdxs))
        assert len(dsts) == len(srcs) == len(sizes) == count
        assert len(attrs) == len(attrsIdxs) == numAttrs <= count
        assert attrsIdxs[0] == 0
        assert stream == STREAM.cuda_stream
        assert [attributes.srcAccessOrder for attributes in attrs] == [STREAM_ORDER]
        self.num_batches += 1
        for to_address, from_address, size in zip(dsts, srcs, sizes, strict=True):
            ctypes.memmove(to_address, from_address, 0 if self.code else size)
        return (self.code, 0) if self.versions[1] < 13000 else (self.code,)


class Rows:
    """A source of random rows, and a poisoned target whose rows are further apart."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.source = torch.randint(256, (5, 24), dtype=torch.uint8, generator=generator)
        self.memory = torch.full((6, 40), 0xA5, dtype=torch.uint8)
        self.ids = np.array([5, 0, 2]), np.array([1, 4, 0])

    def copy(self, row_copy):
        row_copy(self.memory[:, :24], self.ids[0], self.source, self.ids[1], STREAM)
        return self.memory

    @property
    def expected(self):
        memory = self.memory.clone()
        for to_row, from_row in zip(*self.ids, strict=True):
            memory[to_row, :24] = self.source[from_row]
        return memory


def provide(monkeypatch, runtime):
    """Let `cuda.bindings` be installed with this runtime; None for not installed."""
    bindings = ModuleType("cuda.bindings")
    if runtime:
        bindings.runtime = runtime
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime", raising=False)


@pytest.mark.parametrize("bindings", [12090, 13050])
def test_a_batch_copies_its_rows_and_nothing_else(bindings):
    rows, runtime = Rows(), FakeRuntime(bindings=bindings)
    expected = rows.expected
    assert torch.equal(rows.copy(BatchedCopy(runtime)), expected)
    assert runtime.num_batches == 1


def test_one_by_one_copies_the_same(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(entered.append(stream)))
    rows = Rows()
    expected = rows.expected
    assert torch.equal(rows.copy(copy_one_by_one), expected)
    assert entered == [STREAM]


def test_no_rows_are_no_batch():
    rows, runtime = Rows(), FakeRuntime()
    rows.ids = rows.ids[0][:0], rows.ids[1][:0]
    rows.copy(BatchedCopy(runtime))
    assert runtime.num_batches == 0


def test_a_batch_that_cuda_refuses_is_an_error_that_says_how_much():
    with pytest.raises(TierError, match="refused 3 copies of 24 bytes: 1"):
        Rows().copy(BatchedCopy(FakeRuntime(code=1)))


@pytest.mark.parametrize(
    ("driver", "bindings", "is_batched"),
    [
        (12080, 12090, True),
        (13000, 13050, True),
        (13000, 12090, True),
        (12070, 12090, False),
        (13000, 12060, False),
        (12090, 13050, False),
        (0, 13050, False),
    ],
)
def test_a_batch_is_used_where_the_driver_and_the_bindings_have_it(
    monkeypatch, driver, bindings, is_batched
):
    provide(monkeypatch, FakeRuntime(driver, bindings))
    assert isinstance(find_row_copy(), BatchedCopy) == is_batched


def test_without_the_bindings_rows_are_copied_one_by_one(monkeypatch):
    provide(monkeypatch, None)
    assert find_row_copy() is copy_one_by_one


def test_the_stand_in_takes_what_the_wheels_take():
    parameters = inspect.signature(FakeRuntime().cudaMemcpyBatchAsync).parameters
    assert " ".join(parameters) == SIGNATURE


needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="needs cuda-bindings (`pip install .[cuda]`)",
)


@needs_bindings
def test_the_wheel_that_is_installed_takes_what_the_stand_in_takes():
    from cuda.bindings import runtime

    assert " ".join(inspect.signature(runtime.cudaMemcpyBatchAsync).parameters) == SIGNATURE


@needs_bindings
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU might take it")
def test_the_wheel_that_is_installed_reads_every_argument_and_then_misses_the_driver():
    from cuda.bindings import runtime

    with pytest.raises(TierError, match="cudaErrorInsufficientDriver"):
        Rows().copy(BatchedCopy(runtime))
