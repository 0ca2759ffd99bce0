"""Any layout into any other, exactly the named bytes; everything that does not fit is refused."""

from contextlib import contextmanager

import pytest
import torch
from flexkv_kernels import PageViews, copy_pages, copy_pages_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DEVICE, LAYOUTS, PACKED_LAYOUTS, Pool, copy_by_hand

pytestmark = pytest.mark.gpu

SIZES = {"L": 2, "B": 7, "H": 2, "N": 4, "C": 32}
CONTENTS = {
    "16 bytes": 32,
    "8 bytes": 24,
    "4 bytes": 20,
    "2 bytes": 10,
    "1 byte": 7,
}
PAGE_IDS = torch.tensor([5, 0, 6, 2])
COPIES = [copy_pages, copy_pages_torch]


def block_sizes(sizes, num_blocks, block_pages):
    """Return the sizes of stored blocks of the same model, K and V in one content."""
    content = sizes["C"] * sizes.get("P", 1)
    return {**sizes, "P": 1, "B": num_blocks, "N": block_pages * sizes["N"], "C": content}


def blocks_of(pool, num_blocks, block_pages, seed=None):
    """Return stored blocks that `pool` can be gathered into, and a view of their planes."""
    stored = Pool("BHLNC", seed=seed, **block_sizes(pool.sizes, num_blocks, block_pages))
    memory = stored.memory[0][64:-64]
    sizes = block_sizes(pool.sizes, num_blocks, block_pages)
    shaped = memory.view([sizes[axis] for axis in "BHLNC"])
    return stored, PageViews.of_blocks(shaped, pool.planes)


def assert_copies_like_by_hand(copy, source, source_ids, pool, target, target_ids):
    """Compare the whole of the target's memory, guards included, with a copy made by hand."""
    before = [memory.clone() for memory in pool.memory]
    copy_by_hand(source, source_ids, target, target_ids)
    expected = pool.bytes()
    for memory, old in zip(pool.memory, before, strict=True):
        memory.copy_(old)
    assert not torch.equal(pool.bytes(), expected)
    copy(source, source_ids, target, target_ids)
    assert torch.equal(pool.bytes(), expected)


@pytest.fixture(params=LAYOUTS)
def axes(request):
    return LAYOUTS[request.param]


def planes_of(axes):
    return {"P": 2} if "P" in axes else {}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("content", CONTENTS)
def test_pages_of_any_layout_are_gathered_into_blocks(copy, axes, content):
    pool = Pool(axes, seed=1, padding=16, **{**SIZES, "C": CONTENTS[content]}, **planes_of(axes))
    stored, blocks = blocks_of(pool, num_blocks=4, block_pages=2)
    ids = torch.tensor([4, 5, 1, 6])
    assert_copies_like_by_hand(copy, pool.views, PAGE_IDS, stored, blocks, ids)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("content", CONTENTS)
def test_blocks_are_scattered_into_pages_of_any_layout(copy, axes, content):
    pool = Pool(axes, padding=16, **{**SIZES, "C": CONTENTS[content]}, **planes_of(axes))
    _, blocks = blocks_of(pool, num_blocks=4, block_pages=2, seed=2)
    ids = torch.tensor([4, 5, 1, 6])
    assert_copies_like_by_hand(copy, blocks, ids, pool, pool.views, PAGE_IDS)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("source", PACKED_LAYOUTS)
@pytest.mark.parametrize("target", PACKED_LAYOUTS)
def test_pages_of_one_engine_are_converted_to_those_of_another(copy, source, target):
    from_pool = Pool(LAYOUTS[source], seed=3, **{**SIZES, "N": 8, "B": 4})
    to_pool = Pool(LAYOUTS[target], **SIZES)
    from_ids, to_ids = torch.tensor([7, 0, 3]), torch.tensor([0, 6, 2])
    args = (from_pool.views, from_ids, to_pool, to_pool.views, to_ids)
    assert_copies_like_by_hand(copy, *args)


@pytest.mark.parametrize("copy", COPIES)
def test_a_range_of_ids_is_a_part_of_blocks(copy):
    pool = Pool("LBNHC", **SIZES)
    _, blocks = blocks_of(pool, num_blocks=2, block_pages=4, seed=4)
    args = (blocks, torch.arange(3, 7), pool, pool.views, torch.tensor([6, 5, 1, 2]))
    assert_copies_like_by_hand(copy, *args)


@pytest.mark.parametrize("copy", COPIES)
def test_padding_between_pages_is_neither_read_nor_written(copy):
    source = Pool("LBNHC", seed=5, **SIZES)
    wide = Pool("LBHNC", **{**SIZES, "C": 48, "N": 6})
    target = PageViews([slab[:, :, :4, :32] for slab in wide.views.slabs])
    args = (source.views, torch.tensor([1, 4]), wide, target, torch.tensor([3, 0]))
    assert_copies_like_by_hand(copy, *args)


@pytest.mark.parametrize("copy", COPIES)
def test_one_latent_head_is_copied(copy):
    pool = Pool("LBNHC", seed=6, **{**SIZES, "H": 1, "C": 1152, "N": 16})
    stored, blocks = blocks_of(pool, num_blocks=2, block_pages=2)
    args = (pool.views, PAGE_IDS[:3], stored, blocks, torch.arange(3))
    assert_copies_like_by_hand(copy, *args)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float4_e2m1fn_x2]
)
def test_a_pool_of_any_dtype_is_copied_to_blocks_of_bytes(dtype):
    pool = Pool("LBHNC", seed=7, dtype=dtype, **SIZES)
    stored, blocks = blocks_of(pool, num_blocks=3, block_pages=2)
    args = (pool.views, PAGE_IDS, stored, blocks, torch.arange(4))
    assert_copies_like_by_hand(copy_pages, *args)


def test_a_nan_keeps_its_payload():
    nans = torch.full((1, 1, 4, 8), 0x7F81, dtype=torch.int16, device=DEVICE)
    target = torch.zeros_like(nans)
    views = PageViews([nans.view(torch.bfloat16)]), PageViews([target.view(torch.bfloat16)])
    one = torch.tensor([0])
    copy_pages(views[0], one, views[1], one)
    assert torch.equal(target, nans)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_geometry_is_copied_exactly(data):
    axes = data.draw(st.permutations("LPBHN").map(lambda order: "".join(order) + "C"), "layout")
    size = st.integers(1, 5)
    sizes = {axis: data.draw(size, axis) for axis in "LBHN"}
    sizes |= {"P": data.draw(st.integers(1, 2)), "C": data.draw(st.integers(1, 40))}
    block_pages = data.draw(size, "pages in a block")
    num_ids = data.draw(st.integers(1, sizes["B"]), "pages")
    pool = Pool(axes, seed=8, padding=data.draw(st.sampled_from([1, 2, 4, 8, 16])), **sizes)
    stored, blocks = blocks_of(pool, num_blocks=sizes["B"], block_pages=block_pages)
    source_ids = torch.tensor(data.draw(st.permutations(range(sizes["B"])))[:num_ids])
    places = data.draw(st.permutations(range(sizes["B"] * block_pages)))
    target_ids = torch.tensor(places[:num_ids])
    args = (pool.views, source_ids, stored, blocks, target_ids)
    assert_copies_like_by_hand(copy_pages, *args)


@pytest.fixture
def pools():
    return Pool("LBHNC", seed=9, **SIZES), Pool("LBNHC", **SIZES)


@contextmanager
def refused(target, error, sentence):
    """Expect an error that says `sentence`, and not a byte written to the pool `target`."""
    before = target.bytes()
    with pytest.raises(error, match=sentence):
        yield
    assert torch.equal(target.bytes(), before)


@pytest.mark.parametrize("copy", COPIES)
def test_no_pages_are_no_work(copy, pools):
    before = pools[1].bytes()
    none = torch.zeros(0, dtype=torch.int64)
    copy(pools[0].views, none, pools[1].views, none)
    assert torch.equal(pools[1].bytes(), before)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("page_id", [-1, SIZES["B"]])
@pytest.mark.parametrize("side", [0, 1])
def test_a_page_of_another_pool_is_refused(copy, pools, page_id, side):
    ids = [torch.tensor([0, 1]), torch.tensor([0, 1])]
    ids[side][1] = page_id
    with refused(pools[1], IndexError, r"do not lie in \[0, 7\)"):
        copy(pools[0].views, ids[0], pools[1].views, ids[1])


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize(
    ("source_ids", "target_ids", "sentence"),
    [
        (torch.tensor([0, 1]), torch.tensor([2, 2]), "named twice in 2 target ids"),
        (torch.tensor([0, 1]), torch.tensor([2]), "one id for each page on both sides"),
        (torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), "one id for each page"),
        (torch.tensor(0), torch.tensor(2), "one id for each page"),
        (torch.tensor([0, 1]).int(), torch.tensor([2, 3]), r"torch\.int32 on cpu"),
        (torch.tensor([0, 1]), torch.tensor([2, 3], device="meta"), r"torch\.int64 on meta"),
    ],
)
def test_ids_that_fit_nothing_are_refused(copy, pools, source_ids, target_ids, sentence):
    with refused(pools[1], ValueError, sentence):
        copy(pools[0].views, source_ids, pools[1].views, target_ids)


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"L": 3}, r"are \(2, 2, 32, .* and \(3, 2, 32, "),
        ({"H": 4}, "expected the same on both sides"),
        ({"C": 16}, "expected the same on both sides"),
        ({"N": 6}, "pages of 4 and 6 tokens"),
    ],
)
def test_pages_of_another_model_are_refused(copy, pools, change, sentence):
    other = Pool("LBHNC", **{**SIZES, **change})
    with refused(other, ValueError, sentence):
        copy(pools[0].views, torch.tensor([0]), other.views, torch.tensor([0]))


@pytest.mark.parametrize("copy", COPIES)
def test_pages_of_another_device_are_refused(copy, pools):
    elsewhere = PageViews([slab.to("meta") for slab in pools[0].views.slabs])
    with refused(pools[1], ValueError, r"device\(type='meta'\)\) and .* the same on both sides"):
        copy(elsewhere, torch.tensor([0]), pools[1].views, torch.tensor([0]))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_within_one_pool_is_refused(copy, pools):
    with refused(pools[0], ValueError, "or the source"):
        copy(pools[0].views, torch.tensor([0]), pools[0].views, torch.tensor([1]))


@pytest.mark.parametrize("copy", COPIES)
def test_target_pages_that_overlap_are_refused(copy, pools):
    slabs = [slab[:1].expand(SIZES["B"], -1, -1, -1) for slab in pools[1].views.slabs]
    with refused(pools[1], ValueError, "overlap one another"):
        copy(pools[0].views, torch.tensor([0, 1]), PageViews(slabs), torch.tensor([0, 1]))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs the compiled kernel")
def test_cpu_tensors_without_the_interpreter_are_refused(monkeypatch, pools):
    monkeypatch.delenv("TRITON_INTERPRET")
    with refused(pools[1], ValueError, "use a CUDA device"):
        copy_pages(pools[0].views, torch.tensor([0]), pools[1].views, torch.tensor([0]))
