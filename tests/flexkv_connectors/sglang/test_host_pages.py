"""SGLang's host layouts as page geometry, against the slowest possible reading of each."""

import numpy as np
import pytest
from host_pools import MHATokenToKVPoolHost, MLATokenToKVPoolHost

from flexkv_connectors.sglang.host_pages import page_pool_of
from flexkv_core.errors import LayoutError
from flexkv_core.testing.geometry import read_block

LAYERS, PAGES, TOKENS, HEADS, SIZE = 3, 5, 4, 2, 8
PAGING = {"page_num": PAGES, "page_size": TOKENS}
ORDERS = {
    "layer_first": (LAYERS, PAGES * TOKENS, HEADS, SIZE),
    "page_first": (PAGES * TOKENS, LAYERS, HEADS, SIZE),
    "page_first_direct": (PAGES, LAYERS, TOKENS, HEADS, SIZE),
    "page_head": (PAGES, HEADS, TOKENS, LAYERS, SIZE),
}


def elements_of(layout, plane, page, head):
    """Return `[L, N, D]` of one page and head of one plane, by the layout's definition."""
    tokens = slice(page * TOKENS, (page + 1) * TOKENS)
    return {
        "layer_first": lambda: plane[:, tokens, head],
        "page_first": lambda: plane[tokens, :, head].swapaxes(0, 1),
        "page_first_direct": lambda: plane[page, :, :, head],
        "page_head": lambda: plane[page, head].swapaxes(0, 1),
    }[layout]()


def ramp(shape):
    return np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)


@pytest.mark.parametrize("layout", ORDERS)
def test_keys_and_values_of_every_layout_are_read_side_by_side(layout):
    planes = ramp((2, *ORDERS[layout]))
    pages = page_pool_of(MHATokenToKVPoolHost(layout, planes, **PAGING))
    expected = np.stack(
        [
            np.concatenate([elements_of(layout, plane, 3, head) for plane in planes], axis=-1)
            for head in range(HEADS)
        ]
    )
    assert read_block(pages, [3]) == expected.tobytes()


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_latents_have_one_plane_and_one_head(layout):
    shape = [1 if size == HEADS else size for size in ORDERS[layout]]
    plane = ramp(shape)
    pages = page_pool_of(MLATokenToKVPoolHost(layout, plane, **PAGING))
    assert (pages.num_heads, pages.num_planes) == (1, 1)
    assert read_block(pages, [2]) == elements_of(layout, plane, 2, 0).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "page_unified"},
        {"storage_format_tag": "unified-token-major"},
        {"stores_page_envelope": True},
    ],
)
def test_a_layout_that_is_not_known_is_refused_with_those_that_are(changes):
    pool = MHATokenToKVPoolHost("layer_first", ramp((2, *ORDERS["layer_first"])), **PAGING)
    for name, value in changes.items():
        setattr(pool, name, value)
    with pytest.raises(LayoutError, match="page_first_direct, page_head"):
        page_pool_of(pool)


def test_a_pool_from_before_special_formats_had_a_name_is_read(monkeypatch):
    monkeypatch.delattr(MHATokenToKVPoolHost, "storage_format_tag")
    monkeypatch.delattr(MHATokenToKVPoolHost, "stores_page_envelope")
    planes = ramp((2, *ORDERS["layer_first"]))
    assert page_pool_of(MHATokenToKVPoolHost("layer_first", planes, **PAGING)).num_pages == PAGES


def test_a_pool_of_another_kind_is_refused():
    class MambaPoolHost(MHATokenToKVPoolHost):
        """Another kind."""

    pool = MambaPoolHost("layer_first", ramp((2, *ORDERS["layer_first"])), **PAGING)
    with pytest.raises(LayoutError, match="MambaPoolHost"):
        page_pool_of(pool)
