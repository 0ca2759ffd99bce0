"""The cache without an engine: save two blocks of one prompt, lose them, load them for another.

Shows the four verbs. An engine's scheduler would own the manager and its model runner the worker;
here both are in this process, and the engine's KV pages are an array.
"""

import numpy as np

from flexkv_core.block.keys import KeyChain
from flexkv_core.block.layout import BlockFormat, LayerRun, PagePool
from flexkv_core.block.types import RequestId
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.worker import HOST, PAGES, CacheWorker, Route
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, TransferPlan

LAYERS, PAGES_IN_POOL, HEADS, PAGE_TOKENS, CONTENT = 4, 8, 2, 16, 64
SLOTS = 32


def describe(kv: np.ndarray) -> PagePool:
    """Describe `kv`, `[layer, page, head, token, content]` bytes, by address and strides."""
    layer, page, head, token, plane = kv.strides
    return PagePool(
        runs=(LayerRun(kv.ctypes.data, LAYERS, layer),),
        num_pages=PAGES_IN_POOL,
        num_heads=HEADS,
        page_tokens=PAGE_TOKENS,
        num_planes=1,
        plane_bytes=CONTENT,
        page_stride=page,
        head_stride=head,
        token_stride=token,
        plane_stride=plane,
        memory_start=kv.ctypes.data,
        memory_bytes=kv.nbytes,
    )


def main() -> None:
    """Save, overwrite, load, compare."""
    shape = (LAYERS, PAGES_IN_POOL, HEADS, PAGE_TOKENS, CONTENT)
    kv = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    block = BlockFormat(
        num_heads=HEADS,
        num_layers=LAYERS,
        block_tokens=PAGE_TOKENS,
        token_bytes=CONTENT,
        cell_heads=HEADS,
    )
    pool = HostPool.create(SLOTS, block.block_bytes)
    lane = CpuLane(0, describe(kv), block, pool)
    worker = CacheWorker(0, {Route(PAGES, HOST): lane, Route(HOST, PAGES): lane})
    manager = CacheManager([TierSpec(HOST, SLOTS)], recorder=Counters())

    def carry_out(plan: TransferPlan) -> None:
        worker.submit([plan])
        for result in worker.poll():
            print(f"  {result.status.name}: {result.num_blocks} blocks, {result.num_bytes} bytes")
            manager.complete(result)

    chain = KeyChain(PAGE_TOKENS)
    chain.advance(list(range(40)))  # two full blocks of 16 tokens, and 8 tokens more
    print("save pages 5 and 2 for request A")
    reservation = manager.reserve(RequestId("A"), chain.keys)
    carry_out(manager.plan_put(reservation, EnginePages([5, 2])))

    computed = kv[:, [5, 2]].copy()
    kv[:] = 0
    print("the engine's pages are gone; request B has the same prompt")
    manager.note_use(chain.keys)
    lease = manager.match(RequestId("B"), chain.keys)
    pages = EnginePages([0, 7])
    carry_out(manager.plan_get(lease, pages, first_block=0, num_blocks=lease.num_blocks))
    assert (kv[:, [0, 7]] == computed).all()
    print("pages 0 and 7 hold what was computed, byte for byte")
    worker.shutdown(timeout_s=1)
    pool.close()


if __name__ == "__main__":
    main()
