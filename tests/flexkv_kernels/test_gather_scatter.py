"""Gather and scatter move exactly the named bytes, in every layout, and refuse everything else."""

import pytest
import torch
from flexkv_kernels import gather_pages, gather_pages_torch, scatter_pages, scatter_pages_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_PAGES = 7
PAGE_IDS = torch.tensor([[5, 0], [2, 6], [1, 3]])
POISON = 0xA5

# Order of the axes of `[L, B, H, N, C]` in memory.
LAYOUTS = {
    "HND": (0, 1, 2, 3, 4),
    "NHD": (0, 1, 3, 2, 4),
    "heads first": (0, 2, 1, 3, 4),
    "cross-layer HND": (1, 0, 2, 3, 4),
    "cross-layer NHD": (1, 0, 3, 2, 4),
    "heads before layers": (1, 2, 0, 3, 4),
}
SHAPES = {
    "3 layers of bf16": ((3, NUM_PAGES, 2, 4, 16), torch.bfloat16),
    "one latent head": ((2, NUM_PAGES, 1, 8, 36), torch.bfloat16),
    "one layer of float32": ((1, NUM_PAGES, 3, 4, 8), torch.float32),
    "fp8": ((2, NUM_PAGES, 2, 4, 24), torch.float8_e4m3fn),
    "words of two bytes": ((2, NUM_PAGES, 2, 3, 5), torch.float16),
    "words of one byte": ((2, NUM_PAGES, 2, 3, 7), torch.uint8),
    "pages larger than a tile": ((1, NUM_PAGES, 1, 16, 768), torch.bfloat16),
}
GATHERS = [gather_pages, gather_pages_torch]
SCATTERS = [scatter_pages, scatter_pages_torch]
BOTH = [*GATHERS, *SCATTERS]


def poisoned(num_bytes):
    return torch.full((num_bytes,), POISON, dtype=torch.uint8, device=DEVICE)


def random_bytes(num_bytes):
    generator = torch.Generator().manual_seed(num_bytes)
    return torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator).to(DEVICE)


def arranged(storage, shape, dtype, order):
    """View `storage` as `shape`, its axes lying in memory in `order`."""
    in_memory = storage.view(dtype).view([shape[axis] for axis in order])
    return in_memory.permute([order.index(axis) for axis in range(len(order))])


def num_bytes_of(shape, dtype):
    return torch.Size(shape).numel() * dtype.itemsize


def cell_shape(shape):
    layers, _, heads, tokens, content = shape
    return PAGE_IDS.shape[0], heads, layers, PAGE_IDS.shape[1] * tokens, content


def expected_bytes(pages, cells):
    """Yield equal-sized byte runs of a page and of a cell, walked by hand."""
    tokens = pages.shape[3]
    for block, ids in enumerate(PAGE_IDS.tolist()):
        for position, page in enumerate(ids):
            run = slice(position * tokens, (position + 1) * tokens)
            for layer in range(pages.shape[0]):
                for head in range(pages.shape[2]):
                    yield pages[layer, page, head], cells[block, head, layer, run]


def same_bytes(left, right):
    left, right = (tensor.contiguous().view(torch.uint8) for tensor in (left, right))
    return torch.equal(left, right)


@pytest.mark.parametrize("gather", GATHERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHAPES)
def test_gather_puts_every_token_in_its_cell(gather, layout, case):
    shape, dtype = SHAPES[case]
    pages = arranged(random_bytes(num_bytes_of(shape, dtype)), shape, dtype, LAYOUTS[layout])
    cells = poisoned(num_bytes_of(cell_shape(shape), dtype)).view(dtype).view(cell_shape(shape))
    gather(pages, PAGE_IDS, cells)
    assert all(same_bytes(page, cell) for page, cell in expected_bytes(pages, cells))


@pytest.mark.parametrize("scatter", SCATTERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHAPES)
def test_scatter_puts_every_token_in_its_page(scatter, layout, case):
    shape, dtype = SHAPES[case]
    pages = arranged(poisoned(num_bytes_of(shape, dtype)), shape, dtype, LAYOUTS[layout])
    cells = random_bytes(num_bytes_of(cell_shape(shape), dtype)).view(dtype).view(cell_shape(shape))
    scatter(pages, PAGE_IDS, cells)
    assert all(same_bytes(page, cell) for page, cell in expected_bytes(pages, cells))


@pytest.mark.parametrize("scatter", SCATTERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_leaves_other_pages_alone(scatter, layout):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = arranged(poisoned(num_bytes_of(shape, dtype)), shape, dtype, LAYOUTS[layout])
    cells = torch.zeros(cell_shape(shape), dtype=dtype, device=DEVICE)
    scatter(pages, PAGE_IDS, cells)
    [other] = set(range(NUM_PAGES)) - set(PAGE_IDS.flatten().tolist())
    assert (pages[:, other].contiguous().view(torch.uint8) == POISON).all()


@pytest.mark.parametrize("gather", GATHERS)
def test_gather_of_a_layer_run_writes_only_its_layers(gather):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    blocks, heads, layers, tokens, content = cell_shape(shape)
    whole = (blocks, heads, layers + 2, tokens, content)
    cells = poisoned(num_bytes_of(whole, dtype)).view(dtype).view(whole)
    gather(pages, PAGE_IDS, cells[:, :, 1:-1])
    written = cells.view(torch.uint8) != POISON
    assert (written.all(dim=(0, 1, 3, 4)).tolist()) == [False, True, True, True, False]
    assert not written[:, :, [0, -1]].any()


@pytest.mark.parametrize("gather", GATHERS)
def test_gather_writes_nothing_beside_the_cells(gather):
    shape, dtype = SHAPES["pages larger than a tile"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    size = num_bytes_of(cell_shape(shape), dtype)
    storage = poisoned(size + 128)
    gather(pages, PAGE_IDS, storage[64:-64].view(dtype).view(cell_shape(shape)))
    assert (storage[:64] == POISON).all()
    assert (storage[-64:] == POISON).all()
    assert (storage[64:-64] == 0).all()


def test_a_nan_keeps_its_payload():
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.full(shape, 0x7F81, dtype=torch.int16, device=DEVICE).view(dtype)
    cells = torch.zeros(cell_shape(shape), dtype=dtype, device=DEVICE)
    gather_pages(pages, PAGE_IDS, cells)
    assert (cells.view(torch.int16) == 0x7F81).all()


@pytest.mark.parametrize("copy", BOTH)
def test_no_blocks_are_no_work(copy):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    cells = torch.zeros((0, *cell_shape(shape)[1:]), dtype=dtype, device=DEVICE)
    copy(pages, torch.zeros((0, 2), dtype=torch.int64), cells)


@pytest.mark.parametrize("copy", BOTH)
@pytest.mark.parametrize("page_id", [-1, NUM_PAGES])
def test_a_page_of_another_pool_is_refused(copy, page_id):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    cells = torch.zeros(cell_shape(shape), dtype=dtype, device=DEVICE)
    page_ids = PAGE_IDS.clone()
    page_ids[0, 0] = page_id
    with pytest.raises(IndexError, match=r"do not lie in \[0, 7\)"):
        copy(pages, page_ids, cells)


@pytest.mark.parametrize("scatter", SCATTERS)
def test_a_page_written_twice_is_refused(scatter):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    cells = torch.zeros(cell_shape(shape), dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match="named twice"):
        scatter(pages, torch.tensor([[5, 0], [2, 6], [1, 5]]), cells)


@pytest.mark.parametrize("copy", BOTH)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p, i, c: (p[0], i, c), "have 4, 2 and 5 dimensions"),
        (lambda p, i, c: (p, i[:2], c), "cells have shape"),
        (lambda p, i, c: (p, i, c.float()), "expected one dtype on one device"),
        (lambda p, i, c: (p[..., ::2], i, c[..., ::2]), "has stride 2 and 2"),
        (lambda p, i, c: (p, i.int(), c), r"expected torch\.int64 on cpu"),
    ],
)
def test_tensors_of_another_geometry_are_refused(copy, change, sentence):
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype, device=DEVICE)
    cells = torch.zeros(cell_shape(shape), dtype=dtype, device=DEVICE)
    with pytest.raises(ValueError, match=sentence):
        copy(*change(pages, PAGE_IDS, cells))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs the compiled kernel")
def test_cpu_tensors_without_the_interpreter_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    shape, dtype = SHAPES["3 layers of bf16"]
    pages = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match="use a CUDA device"):
        gather_pages(pages, PAGE_IDS, torch.zeros(cell_shape(shape), dtype=dtype))
