"""A CPU lane between an engine's pool and a host pool, and plans for it."""

from dataclasses import dataclass

import numpy as np

from flexkv_core.block.layout import BlockFormat, PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.plan import EnginePages, HostSlots, TransferPlan
from flexkv_core.testing.geometry import POISON, make_pages


@dataclass
class Rig:
    """An engine's pool filled with random bytes, a poisoned host pool, and a lane between them."""

    memory: np.ndarray
    pages: PagePool
    fmt: BlockFormat
    host: HostPool
    lane: CpuLane

    def slot(self, slot):
        start = slot * self.host.slot_stride
        return np.frombuffer(self.host.buffer, np.uint8)[start : start + self.fmt.block_bytes]

    def run(self, plan):
        self.lane.submit(plan)
        (result,) = self.lane.poll()
        return result


OPEN_POOLS = []


def close_pools():
    while OPEN_POOLS:
        OPEN_POOLS.pop().close()


def make_rig(axes, *, pages_per_block=1, num_slots=6, num_threads=2, seed=0, **sizes):
    sizes = {"L": 3, "B": 12, "H": 2, "N": 4, "C": 16, "padding": 64, **sizes}
    memory, pages = make_pages(axes, **sizes)
    memory[:] = np.random.default_rng(seed).integers(0, 256, memory.size, np.uint8)
    fmt = BlockFormat(
        num_heads=pages.num_heads,
        num_layers=pages.num_layers,
        block_tokens=pages_per_block * pages.page_tokens,
        token_bytes=pages.token_bytes,
        cell_heads=1,
    )
    host = HostPool.create(num_slots, fmt.block_bytes)
    OPEN_POOLS.append(host)
    np.frombuffer(host.buffer, np.uint8)[:] = POISON
    return Rig(memory, pages, fmt, host, CpuLane(7, pages, fmt, host, num_threads=num_threads))


def slots_of(*slots):
    return HostSlots(np.array(slots, np.int64).tobytes())


def offload(page_ids, slots, **changes):
    return TransferPlan(
        **{
            "job_id": 1,
            "source": EnginePages(page_ids),
            "target": slots_of(*slots),
            "num_blocks": len(slots),
            **changes,
        }
    )


def onboard(slots, page_ids, first_page=0, **changes):
    return TransferPlan(
        **{
            "job_id": 2,
            "source": slots_of(*slots),
            "target": EnginePages(page_ids, first_page),
            "num_blocks": len(slots),
            **changes,
        }
    )
