"""The CUDA device names the right bytes, with streams that run at once and the torch kernel.

What only a GPU can show, that real streams keep the order asked for, is not shown here.
"""

import importlib.util

import pytest
from cpu_lane_rig import make_rig, offload, onboard
from test_cpu_lane_contract import CpuLaneCase

from flexkv_core.data.transfer.device import Stream
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.data.transfer.segments import Limits
from flexkv_core.plan import Status
from flexkv_core.testing.instant_streams import use_instant_streams
from flexkv_core.testing.lane_contract import LaneContract

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="needs torch and triton (`make setup-engine`)",
)


class StuckEvent:
    def query(self):
        return False


def slabs_of(memory, pages):
    """Return the engine's tensors `[B, H, N, C]`, one for each layer and plane."""
    import torch

    whole = torch.from_numpy(memory)
    shape = (pages.num_pages, pages.num_heads, pages.page_tokens, pages.plane_bytes)
    strides = (pages.page_stride, pages.head_stride, pages.token_stride, 1)
    starts = [
        run.address - pages.memory_start + layer * run.layer_stride + plane * pages.plane_stride
        for run in pages.runs
        for layer in range(run.num_layers)
        for plane in range(pages.num_planes)
    ]
    return [whole.as_strided(shape, strides, start) for start in starts]


def cuda_device(rig, num_places):
    from flexkv_core.data.transfer.cuda_device import CudaDevice

    slabs = slabs_of(rig.memory, rig.pages)
    return CudaDevice(slabs, rig.fmt, rig.host, num_places=num_places)


def gpu_lane(rig, device, load_places):
    limits = Limits(rig.pages.num_pages, device.pages_per_block)
    return GpuLane(
        7,
        device,
        limits,
        num_host_slots=rig.host.num_slots,
        block_bytes=rig.fmt.block_bytes,
        load_places=load_places,
    )


@pytest.fixture(autouse=True)
def compute(monkeypatch):
    from flexkv_kernels import copy_pages_torch

    return use_instant_streams(monkeypatch, copy_pages_torch)


class CudaLaneCase(CpuLaneCase):
    """The same plans and the same expectations as on a CPU."""

    def __init__(self, axes, *, saves):
        super().__init__(axes, saves=saves)
        self.lane = gpu_lane(self.rig, cuda_device(self.rig, num_places=7), load_places=1)


@pytest.mark.parametrize("axes", ["LBHNC", "BLNHC", "LPBNHC"])
class TestCudaDeviceSaving(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CudaLaneCase(axes, saves=True)


@pytest.mark.parametrize("axes", ["LBHNC", "BLNHC", "LPBNHC"])
class TestCudaDeviceLoading(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CudaLaneCase(axes, saves=False)


@pytest.mark.parametrize("layer_runs", [None, [2, 1]])
def test_a_part_of_a_block_is_loaded(layer_runs):
    rig = make_rig("LBNHC", pages_per_block=2, layer_runs=layer_runs)
    device = cuda_device(rig, num_places=4)
    lane = gpu_lane(rig, device, load_places=1)
    lane.submit(offload([4, 5], [3]))
    saved = bytes(rig.slot(3))
    lane.submit(onboard([3], [9], first_page=1))
    lane.submit(offload([4, 9], [2]))
    assert [result.status for result in lane.poll()] == [Status.OK] * 3
    assert bytes(rig.slot(2)) == saved


def test_a_side_stream_waits_for_the_event_of_another(compute):
    device = cuda_device(make_rig("LBNHC"), num_places=2)
    device.wait(Stream.OUT, device.record(Stream.COMPUTE))
    assert device.record(Stream.OUT).stream.waits == [compute]
    assert device.record(Stream.IN).stream.waits == []


def test_a_device_that_is_stuck_is_not_waited_for_longer_than_asked():
    device = cuda_device(make_rig("LBNHC"), num_places=2)
    assert not device.wait_for(StuckEvent(), 0.0)
    assert device.wait_for(device.record(Stream.IN), 0.0)
