"""The CPU lane against a reference that copies one plane of one token at a time."""

import numpy as np
import pytest
from cpu_lane_rig import close_pools, make_rig, offload, onboard
from hypothesis import given, settings
from hypothesis import strategies as st

from flexkv_core.plan import Status
from flexkv_core.testing.geometry import POISON, read_block, write_page

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
    for index, page in enumerate(transfer["page_ids"], transfer["first_page"]):
        block, position = divmod(index, per_block)
        content = rig.slot(transfer["slots"][block])
        write_page(shadow.pages, page, position, content)

    result = rig.run(onboard(transfer["slots"], transfer["page_ids"], transfer["first_page"]))

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
    expected = np.full(len(rig.host.buffer), POISON, np.uint8)
    for index, slot in enumerate(slots):
        block = read_block(rig.pages, page_ids[index * per_block : (index + 1) * per_block])
        start = slot * rig.host.slot_stride
        expected[start : start + len(block)] = np.frombuffer(block, np.uint8)

    result = rig.run(offload(page_ids, slots))

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
