"""The CPU lane against a reference that copies one plane of one token at a time."""

import threading
import time
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkv_core.errors import LayoutError
from flexkv_core.layout import BlockFormat, PagePool
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import DelayingLane, ManualClock
from flexkv_core.testing.geometry import POISON, make_pages, read_block, write_page
from flexkv_core.testing.lane_contract import LaneCase, LaneContract
from flexkv_core.tiers.host import HostPool
from flexkv_core.transfer import cpu_lane
from flexkv_core.transfer.cpu_lane import CpuLane

GEOMETRIES = {
    "vllm LBHNC": ("LBHNC", {}),
    "vllm LBNHC": ("LBNHC", {}),
    "vllm BLHNC": ("BLHNC", {}),
    "vllm BLNHC": ("BLNHC", {}),
    "vllm BHLNC": ("BHLNC", {}),
    "vllm LHBNC": ("LHBNC", {}),
    "vllm 0.24 [B, 2, N, H, D]": ("LBPNHC", {"P": 2}),
    "[2, B, N, H, D]": ("LPBNHC", {"P": 2}),
    "sglang layer_first [2, L, B, N, H, D]": ("PLBNHC", {"P": 2}),
    "sglang page_first [2, B, N, L, H, D]": ("PBNLHC", {"P": 2}),
    "sglang page_first_direct [2, B, L, N, H, D]": ("PBLNHC", {"P": 2}),
    "sglang page_head [2, B, H, N, L, D]": ("PBHNLC", {"P": 2}),
    "tensorrt-llm [B, L, 2, H, N, D]": ("BLPHNC", {"P": 2}),
    "mla": ("LBNHC", {"H": 1, "C": 1152}),
    "several runs of layers": ("LBHNC", {"layer_runs": [1, 2]}),
}


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


@pytest.fixture(autouse=True)
def pools_end_with_their_test():
    yield
    close_pools()


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


@pytest.mark.parametrize("pages_per_block", [1, 4])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_saved_block_is_head_major_whatever_the_engine_keeps(name, pages_per_block):
    axes, sizes = GEOMETRIES[name]
    rig = make_rig(axes, pages_per_block=pages_per_block, **sizes)
    page_ids = [9, 3, 4, 5, 0, 11, 1, 2][: 2 * pages_per_block]

    rig.run(offload(page_ids, [4, 1]))

    assert read_block(rig.pages, page_ids[:pages_per_block]) == rig.slot(4).tobytes()
    assert read_block(rig.pages, page_ids[pages_per_block:]) == rig.slot(1).tobytes()


@pytest.mark.parametrize("pages_per_block", [1, 4])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_block_comes_back_to_other_pages_as_it_was(name, pages_per_block):
    axes, sizes = GEOMETRIES[name]
    rig = make_rig(axes, pages_per_block=pages_per_block, **sizes)
    saved, loaded = [2, 3, 7, 0][:pages_per_block], [8, 5, 6, 10][:pages_per_block]
    block = read_block(rig.pages, saved)

    rig.run(offload(saved, [2]))
    rig.run(onboard([2], loaded))

    assert block == read_block(rig.pages, loaded)


def test_saving_writes_nothing_but_the_blocks_of_the_plan():
    rig = make_rig("LBNHC", C=24)
    before = np.frombuffer(rig.host.buffer, np.uint8).copy()
    rig.run(offload([3], [2]))
    start = 2 * rig.host.slot_stride
    before[start : start + rig.fmt.block_bytes] = rig.slot(2)
    assert before.tobytes() == bytes(rig.host.buffer)


def test_saving_leaves_the_engine_pages_alone():
    rig = make_rig("LBNHC")
    before = rig.memory.copy()
    rig.run(offload([3], [2]))
    assert before.tobytes() == rig.memory.tobytes()


@st.composite
def transfers(draw):
    """Any geometry, and any load into it."""
    axes = "".join(draw(st.permutations("LBHN" + draw(st.sampled_from(["", "P"]))))) + "C"
    layer_runs = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    pages_per_block = draw(st.integers(1, 4))
    num_blocks = draw(st.integers(1, 3))
    first_page = draw(st.integers(0, pages_per_block - 1))
    missing = draw(st.integers(0, pages_per_block - 1))
    num_pages = num_blocks * pages_per_block - first_page - missing
    first_layer, end_layer = sorted(
        draw(st.lists(st.integers(0, sum(layer_runs)), min_size=2, max_size=2, unique=True))
    )
    return {
        "axes": axes,
        "sizes": {
            "layer_runs": layer_runs,
            "L": sum(layer_runs),
            "B": 12,
            "H": draw(st.integers(1, 3)),
            "N": draw(st.integers(1, 5)),
            "C": draw(st.integers(1, 24)),
            "P": draw(st.integers(1, 2)) if "P" in axes else 1,
            "padding": draw(st.integers(0, 9)),
            "pages_per_block": pages_per_block,
            "num_threads": draw(st.integers(1, 3)),
        },
        "first_page": first_page,
        "page_ids": draw(st.permutations(range(12)))[: max(num_pages, 1)],
        "slots": draw(st.permutations(range(6)))[:num_blocks],
        "layers": draw(st.sampled_from([None, (first_layer, end_layer)])),
    }


@given(transfers())
@settings(deadline=None, max_examples=200)
def test_any_load_equals_the_naive_copy_in_every_byte_of_the_pool(transfer):
    close_pools()
    rig = make_rig(transfer["axes"], **transfer["sizes"])
    shadow = make_rig(transfer["axes"], **transfer["sizes"])
    np.frombuffer(rig.host.buffer, np.uint8)[:] = np.random.default_rng(1).integers(
        0, 256, len(rig.host.buffer), np.uint8
    )
    per_block = rig.fmt.block_tokens // rig.pages.page_tokens
    layers = range(*(transfer["layers"] or (0, rig.pages.num_layers)))
    for index, page in enumerate(transfer["page_ids"], transfer["first_page"]):
        block, position = divmod(index, per_block)
        content = rig.slot(transfer["slots"][block])
        write_page(shadow.pages, page, position, content, layers)

    plan = onboard(transfer["slots"], transfer["page_ids"], transfer["first_page"])
    result = rig.run(msgspec.structs.replace(plan, layers=transfer["layers"]))

    assert result.status is Status.OK, result.error
    assert shadow.memory.tobytes() == rig.memory.tobytes()


@given(transfers())
@settings(deadline=None, max_examples=200)
def test_any_save_equals_the_naive_copy_in_every_byte_of_the_host_pool(transfer):
    close_pools()
    rig = make_rig(transfer["axes"], **transfer["sizes"])
    per_block = rig.fmt.block_tokens // rig.pages.page_tokens
    slots = transfer["slots"][: 12 // per_block]
    page_ids = np.random.default_rng(2).permutation(12)[: len(slots) * per_block].tolist()
    first, end = transfer["layers"] or (0, rig.pages.num_layers)
    expected = np.full(len(rig.host.buffer), POISON, np.uint8)
    for index, slot in enumerate(slots):
        block = read_block(rig.pages, page_ids[index * per_block : (index + 1) * per_block])
        start = slot * rig.host.slot_stride
        by_layer = (rig.pages.num_heads, rig.pages.num_layers, -1)
        target = expected[start : start + len(block)].reshape(by_layer)
        target[:, first:end] = np.frombuffer(block, np.uint8).reshape(by_layer)[:, first:end]

    result = rig.run(offload(page_ids, slots, layers=transfer["layers"]))

    assert result.status is Status.OK, result.error
    assert expected.tobytes() == bytes(rig.host.buffer)


@pytest.mark.parametrize("axes", ["LBHNC", "LBNHC", "LPBNHC"])
def test_ranks_of_half_the_heads_save_the_halves_of_the_whole_block(axes):
    planes = {"P": 2} if "P" in axes else {}
    whole = make_rig(axes, H=4, padding=0, **planes)
    logical = whole.memory.reshape(
        [{"L": 3, "B": 12, "H": 4, "N": 4, "C": 16, "P": 2}[a] for a in axes]
    )
    whole.run(offload([5], [0]))
    halves = []
    for heads in (slice(0, 2), slice(2, 4)):
        rank = make_rig(axes, H=2, padding=0, **planes)
        picked = np.take(logical, np.arange(4)[heads], axis=axes.index("H"))
        rank.memory[:] = picked.reshape(-1)
        rank.run(offload([5], [3]))
        halves.append(rank.slot(3).tobytes())
    assert whole.slot(0).tobytes() == b"".join(halves)


def test_a_load_may_begin_and_end_inside_a_block():
    rig = make_rig("LBHNC", pages_per_block=4)
    rig.run(offload(list(range(8)), [0, 1]))
    before = rig.memory.copy()
    block_pages = [read_block(rig.pages, [page]) for page in range(8)]

    rig.run(onboard([0, 1], [9, 8, 10], first_page=3))

    loaded = [read_block(rig.pages, [page]) for page in (9, 8, 10)]
    assert block_pages[3:6] == loaded
    written = rig.memory != before
    pages = written[64:-64].reshape(3, 12, -1).any(axis=(0, 2))
    assert {8, 9, 10} >= set(np.flatnonzero(pages).tolist())


def test_a_result_counts_the_bytes_of_the_layers_it_moved():
    rig = make_rig("LBNHC", num_threads=1)
    result = rig.run(offload([1, 2], [0, 1], layers=(1, 3)))
    assert result.num_bytes == 2 * 2 * (2 * 4 * 16)


def test_a_result_tells_how_long_it_took():
    rig = make_rig("LBNHC")
    ticks = iter([10.0, 12.5])
    lane = CpuLane(0, rig.pages, rig.fmt, rig.host, clock=lambda: next(ticks))
    lane.submit(offload([1], [0]))
    assert [result.seconds for result in lane.poll()] == [2.5]


def test_a_load_at_its_deadline_is_too_late():
    rig = make_rig("LBNHC")
    clock = ManualClock(10.0)
    lane = CpuLane(0, rig.pages, rig.fmt, rig.host, clock=clock)
    lane.submit(offload([1], [0], deadline_s=10.0))
    lane.submit(offload([1], [0], deadline_s=10.1))
    assert [result.status for result in lane.poll()] == [Status.TIMEOUT, Status.OK]


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (offload([12], [0]), "page id 12 is not in 0 to 11"),
        (offload([-1], [0]), "page id -1 is not in 0 to 11"),
        (offload([0], [6]), "slot id 6 is not in 0 to 5"),
        (offload([0], [-1]), "slot id -1 is not in 0 to 5"),
        (onboard([0, 6], [0, 1]), "slot id 6 is not in 0 to 5"),
        (onboard([0, 1], [0, 12]), "page id 12 is not in 0 to 11"),
        (offload([0, 1], [0]), "pages 0 to 2 do not span 1 x 1"),
        (onboard([0, 1], [0]), "pages 0 to 1 do not span 2 x 1"),
        (onboard([0], [0], first_page=1), "pages 1 to 2 do not span 1 x 1"),
        (onboard([0], [0], first_page=-1), "pages -1 to 0 do not span 1 x 1"),
        (offload([0], [0], num_blocks=2), "the plan has 8 bytes of slot ids for 2 blocks"),
        (offload([], [], num_blocks=0), "a plan of 0 blocks moves nothing"),
        (offload([0], [0], layers=(1, 4)), "layers 1 to 4 are not among the rank's 3"),
        (offload([0], [0], layers=(2, 2)), "layers 2 to 2 are not among the rank's 3"),
        (offload([0], [0], layers=(-1, 2)), "layers -1 to 2 are not among the rank's 3"),
    ],
)
def test_ids_that_do_not_fit_are_refused_with_one_sentence(plan, sentence):
    assert sentence == make_rig("LBHNC").run(plan).error


def test_a_block_is_only_saved_whole():
    rig = make_rig("LBHNC", pages_per_block=4)
    plan = offload([0, 1, 2], [0])
    assert rig.run(plan).error == "only whole blocks are saved: got 3 pages, expected 4"


@pytest.mark.parametrize(
    ("axes", "sizes", "num_saving", "num_loading"),
    [
        ("LBHNC", {"H": 4}, 1, 1),
        ("LBNHC", {"H": 4}, 1, 4),
        ("LBNHC", {"H": 9}, 1, 1),
        ("LBNHC", {"H": 1}, 1, 1),
        ("LPBNHC", {"H": 4, "P": 2}, 2, 4),
        ("BLPHNC", {"H": 4, "P": 2}, 2, 1),
        ("LBNPHC", {"H": 4, "P": 2}, 2, 8),
        ("LBHNC", {"layer_runs": [1, 2]}, 2, 2),
    ],
)
def test_a_block_takes_few_operations_and_no_short_loops(axes, sizes, num_saving, num_loading):
    lane = make_rig(axes, **sizes).lane
    counted = [len(lane._pieces(way, range(3))) for way in (cpu_lane._GATHER, cpu_lane._SCATTER)]
    assert counted == [num_saving, num_loading]


def test_large_plans_use_the_other_threads_as_well(monkeypatch):
    rig = make_rig("LBHNC", N=64, C=4096, num_threads=2)
    names = set()
    gather = cpu_lane._GATHER

    def spy(pieces, segments):
        names.add((threading.current_thread().name, len(segments)))
        gather.copy(pieces, segments)

    monkeypatch.setattr(cpu_lane, "_GATHER", gather._replace(copy=spy))
    rig.run(offload([1, 5, 7], [0, 1, 2]))
    assert {("MainThread", 2), ("flexkv-copy_0", 1)} == names


def test_small_plans_wake_nobody():
    rig = make_rig("LBHNC", num_threads=4)
    rig.run(offload([1, 5, 7], [0, 1, 2]))
    assert not rig.lane._threads._threads


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 4}, "heads, layers, bytes"),
        ({"num_layers": 2}, "heads, layers, bytes"),
        ({"token_bytes": 8}, "heads, layers, bytes"),
        ({"block_tokens": 6}, "whole number of the engine's pages"),
        ({"block_tokens": 16384}, "does not fit a slot"),
    ],
)
def test_pools_that_do_not_belong_together_refuse_to_start(changes, sentence):
    rig = make_rig("LBHNC")
    with pytest.raises(LayoutError, match=sentence):
        CpuLane(0, rig.pages, replace(rig.fmt, **changes), rig.host)


class CpuLaneCase(LaneCase):
    """Saves or loads between the pages and the slots of a rig."""

    def __init__(self, axes, *, saves):
        self.rig = make_rig(axes, pages_per_block=2)
        self.lane, self.rank, self.clock_s = self.rig.lane, 7, time.monotonic()
        self.foreign = StoredBlocks("ssd", [bytes(32)] * 2)
        self.saves = saves
        if not saves:
            memory = np.frombuffer(self.rig.host.buffer, np.uint8)
            memory[:] = np.random.default_rng(3).integers(0, 256, memory.size, np.uint8)

    def plan(self, job_id, num_blocks):
        page_ids = [4 * job_id - 4 + page for page in (2, 0, 1, 3)][: 2 * num_blocks]
        slots = [2 * job_id - 2, 2 * job_id - 1][:num_blocks]
        make = offload(page_ids, slots) if self.saves else onboard(slots, page_ids)
        return msgspec.structs.replace(make, job_id=job_id)

    def broken_plan(self, job_id):
        plan = offload([0, 1, 2, 12], [0, 1]) if self.saves else onboard([0, 1], [0, 1, 2, 12])
        return msgspec.structs.replace(plan, job_id=job_id)

    def target(self):
        return bytes(self.rig.host.buffer) if self.saves else self.rig.memory.tobytes()

    def target_after(self, plan):
        if self.saves:
            memory = np.frombuffer(self.rig.host.buffer, np.uint8).copy()
            for index, slot in enumerate(np.frombuffer(plan.target.slots, np.int64)):
                block = read_block(self.rig.pages, plan.source.page_ids[2 * index : 2 * index + 2])
                start = slot * self.rig.host.slot_stride
                memory[start : start + len(block)] = np.frombuffer(block, np.uint8)
            return memory.tobytes()
        before = self.rig.memory.copy()
        for index, page in enumerate(plan.target.page_ids):
            slot = np.frombuffer(plan.source.slots, np.int64)[index // 2]
            content, layers = self.rig.slot(slot), range(self.rig.pages.num_layers)
            write_page(self.rig.pages, page, index % 2, content, layers)
        after = self.rig.memory.tobytes()
        self.rig.memory[:] = before
        return after


@pytest.mark.parametrize("axes", ["LBHNC", "LBNHC"])
class TestCpuLaneSaving(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CpuLaneCase(axes, saves=True)


@pytest.mark.parametrize("axes", ["LBHNC", "LBNHC"])
class TestCpuLaneLoading(LaneContract):
    @pytest.fixture
    def case(self, axes):
        return CpuLaneCase(axes, saves=False)


class DelayedCase(CpuLaneCase):
    """The same behind a lane that holds its results back."""

    def __init__(self):
        super().__init__("LBHNC", saves=True)
        self.lane = DelayingLane(self.rig.lane)

    def poll(self):
        self.lane.release_all()
        return self.lane.poll()


class TestDelayingLane(LaneContract):
    @pytest.fixture
    def case(self):
        return DelayedCase()
