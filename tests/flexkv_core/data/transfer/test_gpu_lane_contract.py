"""The GPU lane keeps the contract of lanes, saving and loading, in whatever order queues run."""

import pytest
from gpu_lane_rig import ORDERS, make_gpu_rig
from test_cpu_lane_contract import CpuLaneCase

from flexkv_core.testing.lane_contract import LaneContract


class GpuLaneCase(CpuLaneCase):
    """The same plans and the same expectations as on a CPU."""

    def __init__(self, axes, choose, *, saves):
        super().__init__(axes, saves=saves)
        rig = make_gpu_rig(choose, axes, pages_per_block=2, P=1 + ("P" in axes))
        rig.memory[:] = self.rig.memory
        rig.host.buffer[:] = self.rig.host.buffer
        rig.fmt = self.rig.fmt
        self.rig, self.lane, self.clock_s = rig, rig.lane, rig.clock()


@pytest.mark.parametrize("axes", ["LBHNC", "BLNHC", "LPBNHC"])
@pytest.mark.parametrize("order", ORDERS)
class TestGpuLaneSaving(LaneContract):
    @pytest.fixture
    def case(self, axes, order):
        return GpuLaneCase(axes, ORDERS[order], saves=True)


@pytest.mark.parametrize("axes", ["LBHNC", "BLNHC", "LPBNHC"])
@pytest.mark.parametrize("order", ORDERS)
class TestGpuLaneLoading(LaneContract):
    @pytest.fixture
    def case(self, axes, order):
        return GpuLaneCase(axes, ORDERS[order], saves=False)
