"""Pages in device memory, on a simulated device: the lane is used, and saves keep to its ring."""

import pytest
import torch
from engine_double import PAGE, Engine, Request

from flexkv_core.block.layout import BlockFormat
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.testing.cuda_runtime import FakeCuda
from flexkv_core.testing.device import SimulatedDevice

SAVE_PLACES = 3


class PromptDevice(SimulatedDevice):
    """Does what is queued as soon as it is asked how far it is; the forward pass is not queued."""

    def record(self, stream):
        event = super().record(stream)
        self.finish()
        return event


@pytest.fixture
def cuda(monkeypatch):
    """Make every tensor seem to be on a GPU; returns what pins host memory."""
    from flexkv_connectors.session import gpu_share, worker
    from flexkv_connectors.tensorrt_llm import connector, pages

    fake = FakeCuda()

    def device(slabs, fmt: BlockFormat, host, *, num_places):
        return PromptDevice(
            pages.page_pool_of(slabs, 2), fmt, host, num_places, lambda ready: ready[0]
        )

    monkeypatch.setattr(connector, "are_on_gpu", lambda slabs: True)
    monkeypatch.setattr(worker, "are_on_gpu", lambda slabs: True)
    monkeypatch.setattr(gpu_share, "CudaDevice", device)
    monkeypatch.setattr(gpu_share, "find_cuda_runtime", lambda: fake.runtime)
    places = gpu_share.StagingSplit(save=SAVE_PLACES, load=1)
    monkeypatch.setattr(gpu_share, "staging_places", lambda *sizes: places)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    return fake


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """Start an engine that is asked to use its GPU."""
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))
    monkeypatch.setenv("FLEXKV_ENABLE_GPU", "true")
    return Engine(tmp_path)


@pytest.fixture
def on_gpu(engine, cuda):
    """The engine, with its KV on a GPU. The patches are of the modules that it has loaded."""
    yield engine.register()
    engine.close()
    assert cuda.pinned == {}


def test_blocks_pass_through_device_memory_in_both_directions(on_gpu):
    on_gpu.run(Request(1, list(range(20))))
    on_gpu.run(Request(2, list(range(20))))
    assert on_gpu.offers[2] == 16


def test_a_step_saves_no_more_than_the_ring_holds_and_the_next_goes_on(on_gpu):
    on_gpu.run(Request(1, list(range(48)), num_new=4))
    on_gpu.run(Request(2, list(range(49))))
    counts = on_gpu.scheduler._half.session.take_counts()
    assert counts["save_delayed_blocks"] > 0
    assert on_gpu.offers[2] == 48


def test_passes_are_held_back_behind_loads(on_gpu, monkeypatch):
    """The engine may give the pages of a cancelled request away while they are loaded."""
    held = []
    monkeypatch.setattr(GpuLane, "hold_compute", lambda lane: held.append(lane))
    on_gpu.run(Request(1, list(range(20))))
    assert held == []
    on_gpu.run(Request(2, list(range(20))))
    assert len(held) == 1
