"""A GPU lane over a simulated device, and every order in which its queues may run."""

import itertools
import random
from dataclasses import dataclass

import numpy as np
from cpu_lane_rig import make_rig

from flexkv_core.block.layout import PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.device import Stream
from flexkv_core.data.transfer.gpu_lane import GpuLane
from flexkv_core.data.transfer.segments import Limits
from flexkv_core.testing.device import SimulatedDevice
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.geometry import POISON, Bytes


def as_early_as_possible(*streams):
    """Choose the first of `streams` that can go on."""
    return lambda ready: min(ready, key=streams.index)


ORDERS = {
    " before ".join(stream.value for stream in order): as_early_as_possible(*order)
    for order in itertools.permutations(Stream)
}
ORDERS |= {f"shuffled {seed}": random.Random(seed).choice for seed in range(3)}


@dataclass
class GpuRig:
    """Pages filled with random bytes, poisoned slots, and a lane between them."""

    memory: Bytes
    pages: PagePool
    host: HostPool
    device: SimulatedDevice
    lane: GpuLane
    clock: ManualClock
    slot: object

    def forward(self, page, value):
        """Queue a forward pass that fills a page of every layer with one byte."""
        for run in self.pages.runs:
            start = run.address - self.pages.memory_start
            for layer in range(run.num_layers):
                begin = start + layer * run.layer_stride + page * self.pages.page_stride
                page_bytes = self.memory[begin : begin + self.pages.page_stride]
                self.device.queue(Stream.COMPUTE, lambda b=page_bytes: b.fill(value))

    def page(self, page):
        """Return a page's bytes in every layer."""
        (run,) = self.pages.runs
        start = run.address - self.pages.memory_start + page * self.pages.page_stride
        layers = [start + layer * run.layer_stride for layer in range(run.num_layers)]
        return np.concatenate([self.memory[b : b + self.pages.page_stride] for b in layers])

    def results(self):
        """Run everything that is queued and return what the lane reports."""
        self.device.finish()
        return self.lane.poll()


def make_gpu_rig(choose, axes="LBHNC", *, pages_per_block=1, num_places=5, load_places=2, **sizes):
    rig = make_rig(axes, pages_per_block=pages_per_block, **sizes)
    rig.lane.close()
    device = SimulatedDevice(rig.pages, rig.fmt, rig.host, num_places, choose)
    clock = ManualClock()
    lane = GpuLane(
        7,
        device,
        Limits(rig.pages.num_pages, pages_per_block),
        num_host_slots=rig.host.num_slots,
        block_bytes=rig.fmt.block_bytes,
        load_places=load_places,
        clock=clock,
    )
    return GpuRig(rig.memory, rig.pages, rig.host, device, lane, clock, rig.slot)


__all__ = ["ORDERS", "POISON", "GpuRig", "as_early_as_possible", "make_gpu_rig"]
