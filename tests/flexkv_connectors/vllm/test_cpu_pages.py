"""Pages whose keys lie across and whose values lie along are copied in the order of tokens."""

import numpy as np
import pytest

from flexkv_connectors.vllm.cpu_pages import split_vec
from flexkv_core.block.layout import BlockFormat
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.errors import LayoutError
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan
from flexkv_core.testing.geometry import make_pages, read_block

ELEMENT_BYTES, HEAD_SIZE, TOKENS = 4, 3, 8


@pytest.fixture
def engine():
    """Return memory of random bytes, and its pages in the order "vec"."""
    memory, packed = make_pages(
        "LBHNC", L=2, B=4, H=2, N=TOKENS, C=2 * HEAD_SIZE * ELEMENT_BYTES, padding=64
    )
    memory[:] = np.random.default_rng(1).integers(0, 256, memory.size, np.uint8)
    return memory, split_vec(packed, ELEMENT_BYTES, HEAD_SIZE)


@pytest.fixture
def lane(engine):
    _, pages = engine
    fmt = BlockFormat(
        num_heads=2,
        num_layers=2,
        block_tokens=2 * TOKENS,
        token_bytes=pages.token_bytes,
        cell_heads=1,
    )
    host = HostPool.create(2, fmt.block_bytes)
    lane = CpuLane(0, pages, fmt, host)
    lane.host, lane.block_bytes = host, fmt.block_bytes
    yield lane
    lane.close()
    host.close()


def run(lane, source, target):
    lane.submit(TransferPlan(job_id=1, source=source, target=target, num_blocks=1))
    assert [result.status for result in lane.poll()] == [Status.OK]


def test_keys_are_turned_and_values_follow_them(engine, lane):
    memory, pages = engine
    slot = HostSlots(np.array([1], np.int64).tobytes())
    run(lane, EnginePages([3, 1]), slot)
    start = lane.host.slot_stride
    block = bytes(lane.host.buffer[start : start + lane.block_bytes])
    assert block == read_block(pages, [3, 1])
    page = memory[64:-64].reshape(2, 4, 2, 2, -1)[0, 3, 0]
    keys = page[0].reshape(HEAD_SIZE, TOKENS, ELEMENT_BYTES).transpose(1, 0, 2).reshape(TOKENS, -1)
    values = page[1].reshape(TOKENS, -1)
    assert block.startswith(np.concatenate([keys, values], axis=1).tobytes())


def test_what_was_saved_comes_back_to_other_pages(engine, lane):
    memory, pages = engine
    slot = HostSlots(np.array([0], np.int64).tobytes())
    before, expected = memory.copy(), read_block(pages, [3, 1])
    run(lane, EnginePages([3, 1]), slot)
    run(lane, slot, EnginePages([0, 2]))
    assert read_block(pages, [0, 2]) == expected
    kept = np.ones_like(memory, bool)
    kept[64:-64].reshape(2, 4, -1)[:, [0, 2]] = False
    assert np.array_equal(memory[kept], before[kept])


def test_pages_with_gaps_are_refused():
    _, pages = make_pages("LBNHC", L=2, B=4, H=2, N=TOKENS, C=2 * HEAD_SIZE * ELEMENT_BYTES)
    with pytest.raises(LayoutError, match="gaps"):
        split_vec(pages, ELEMENT_BYTES, HEAD_SIZE)
