"""Pools as TensorRT-LLM allocates them, and what we see in them."""

from types import SimpleNamespace

import pytest
import torch

from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.tensorrt_llm.pages import page_pool_of, slabs_of_layout, slabs_of_pool
from flexkv_core.errors import LayoutError
from flexkv_core.testing.geometry import read_block

PAGES, LAYERS, HEADS, TOKENS, SIZE = 5, 3, 2, 4, 8
SHAPE = PageShape(HEADS, TOKENS, 2 * SIZE * 4)
ROW = HEADS * TOKENS * SIZE


def numbers(*shape):
    """Return a tensor in which no two elements are equal."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def stored(kv, page):
    """Return a stored block of `[pages, layers, planes, heads, tokens, size]`, one page long."""
    return kv[page].permute(2, 0, 3, 1, 4).contiguous().numpy().tobytes()


def test_the_first_cache_manager_keeps_heads_outside_tokens():
    pool = numbers(PAGES, LAYERS, 2, ROW)
    pages = page_pool_of(slabs_of_pool(pool, SHAPE, LAYERS, 2), 2)
    kv = pool.view(PAGES, LAYERS, 2, HEADS, TOKENS, SIZE)
    assert [read_block(pages, [page]) for page in range(PAGES)] == [
        stored(kv, page) for page in range(PAGES)
    ]


def test_a_latent_is_one_plane_and_one_head():
    pool = numbers(PAGES, LAYERS, 1, TOKENS * SIZE)
    pages = page_pool_of(slabs_of_pool(pool, PageShape(1, TOKENS, SIZE * 4), LAYERS, 1), 1)
    kv = pool.view(PAGES, LAYERS, 1, 1, TOKENS, SIZE)
    assert read_block(pages, [3]) == stored(kv, 3)


def test_a_pool_that_begins_behind_others_is_read_where_it_is():
    pool = numbers(PAGES, LAYERS + 2, 2, ROW)[:, 1:-1]
    pages = page_pool_of(slabs_of_pool(pool, SHAPE, LAYERS, 2), 2)
    kv = pool.reshape(PAGES, LAYERS, 2, HEADS, TOKENS, SIZE)
    assert read_block(pages, [4]) == stored(kv, 4)


@pytest.mark.parametrize(
    "pool",
    [
        torch.zeros(PAGES, LAYERS, 2, ROW - 1),
        torch.zeros(PAGES, LAYERS + 1, 2, ROW),
        torch.zeros(PAGES, LAYERS, 1, ROW),
        torch.zeros(PAGES, LAYERS, 2, ROW, dtype=torch.bfloat16),
        torch.zeros(PAGES, LAYERS, 2, HEADS, TOKENS * SIZE),
        torch.zeros(PAGES, LAYERS, 2, 2 * ROW)[..., ::2],
    ],
    ids=["row", "layers", "planes", "dtype", "axes", "gaps"],
)
def test_a_pool_of_another_model_is_refused_in_one_sentence(pool):
    with pytest.raises(LayoutError, match="this layout is not known") as refused:
        slabs_of_pool(pool, SHAPE, LAYERS, 2)
    assert "\n" not in str(refused.value)


class Region:
    """A run of buffers that repeats in every slot, over plain memory."""

    def __init__(self, memory, offset, buffers, row_bytes=ROW * 4):
        self.size = row_bytes * len(buffers)
        self.stride = memory.shape[1]
        self.num_slots = memory.shape[0]
        self.buffers = [
            SimpleNamespace(layer_id=layer, role=role, expansion=1) for layer, role in buffers
        ]
        self._rows = memory[:, offset : offset + self.size]

    def as_tensor(self):
        return self._rows


def layout_of(*regions, **changes):
    group = {
        "layer_group_id": 0,
        "layer_ids": (0, 1, 2),
        "window_size": None,
        "regions": regions,
        "replicated_regions": (),
    }
    return SimpleNamespace(tokens_per_block=TOKENS, groups=(SimpleNamespace(**(group | changes)),))


def slots(num_buffers, padding=64):
    rows = numbers(PAGES, num_buffers * ROW + padding // 4)
    return rows, rows.view(torch.uint8)


IN_ORDER = [(layer, role) for layer in range(LAYERS) for role in ("key", "value")]


def test_the_second_cache_manager_says_where_each_layer_lies():
    rows, memory = slots(2 * LAYERS)
    slabs = slabs_of_layout(layout_of(Region(memory, 0, IN_ORDER)), SHAPE, LAYERS, 2)
    kv = rows[:, : 2 * LAYERS * ROW].reshape(PAGES, LAYERS, 2, HEADS, TOKENS, SIZE)
    assert read_block(page_pool_of(slabs, 2), [2]) == stored(kv, 2)


def test_regions_of_keys_and_of_values_in_any_order_of_layers():
    rows, memory = slots(2 * LAYERS)
    keys = Region(memory, 0, [(layer, "key") for layer in (2, 0, 1)])
    values = Region(memory, LAYERS * ROW * 4, [(layer, "value") for layer in (2, 0, 1)])
    slabs = slabs_of_layout(layout_of(values, keys), SHAPE, LAYERS, 2)
    kv = rows[:, : 2 * LAYERS * ROW].reshape(PAGES, 2, LAYERS, HEADS, TOKENS, SIZE)
    kv = kv[:, :, [1, 2, 0]].transpose(1, 2)
    assert read_block(page_pool_of(slabs, 2), [1]) == stored(kv, 1)


@pytest.mark.parametrize(
    "change", [{"window_size": 512}, {"replicated_regions": ("index",)}], ids=["window", "index"]
)
def test_groups_that_cannot_be_restored_are_refused(change):
    _, memory = slots(2 * LAYERS)
    with pytest.raises(LayoutError, match="serve it without a connector"):
        slabs_of_layout(layout_of(Region(memory, 0, IN_ORDER), **change), SHAPE, LAYERS, 2)


@pytest.mark.parametrize(
    ("buffers", "row_bytes"),
    [(IN_ORDER[:-1], ROW * 4), ([*IN_ORDER[:-1], (2, "scale")], ROW * 4), (IN_ORDER, ROW * 2)],
    ids=["lacks a buffer", "other role", "other size"],
)
def test_regions_of_other_contents_are_refused(buffers, row_bytes):
    _, memory = slots(2 * LAYERS)
    region = Region(memory, 0, buffers, row_bytes)
    with pytest.raises(LayoutError, match="this layout is not known"):
        slabs_of_layout(layout_of(region), SHAPE, LAYERS, 2)


def test_keys_and_values_at_unequal_distances_are_refused():
    _, memory = slots(2 * LAYERS)
    order = [IN_ORDER[0], IN_ORDER[1], IN_ORDER[3], IN_ORDER[2], *IN_ORDER[4:]]
    slabs = slabs_of_layout(layout_of(Region(memory, 0, order)), SHAPE, LAYERS, 2)
    with pytest.raises(LayoutError, match="expected one distance"):
        page_pool_of(slabs, 2)
