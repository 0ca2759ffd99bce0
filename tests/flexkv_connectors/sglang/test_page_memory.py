"""SGLang's pages as pieces of memory."""

import weakref

import host_pools
import numpy as np
import pytest
from engine_values import HEADS, LAYERS, PAGES, SIZE, TOKENS, keys_and_values, latents

from flexkv_connectors.sglang.page_memory import format_name, page_memory_of
from flexkv_core.errors import LayoutError

PLANE_BYTES = LAYERS * TOKENS * HEADS * SIZE * 2


def numbered(pool):
    array = pool.kv_buffer.array
    array[...] = (np.arange(array.size) % 2003).reshape(array.shape)
    return pool


def test_a_page_is_its_keys_and_then_its_values():
    pool = numbered(keys_and_values())
    keys, values = page_memory_of(pool).pieces(PAGES - 1)
    assert bytes(keys) == pool.kv_buffer.array[0, PAGES - 1].tobytes()
    assert bytes(values) == pool.kv_buffer.array[1, PAGES - 1].tobytes()


def test_a_page_of_latents_is_one_piece():
    pool = numbered(latents())
    (page,) = page_memory_of(pool).pieces(1)
    assert bytes(page) == pool.kv_buffer.array[1].tobytes()


def test_the_name_says_whose_order_it_is():
    name = format_name(keys_and_values(), "0.5.23")
    assert name == f"sglang-0.5.23.MHATokenToKVPoolHost.page_first_direct.2x{PLANE_BYTES}"


@pytest.mark.parametrize("change", [("version", "0.5.24"), ("layout", "page_head")])
def test_another_order_has_another_name(change):
    pool, version = keys_and_values(), "0.5.23"
    before = format_name(pool, version)
    if change[0] == "layout":
        pool.layout = change[1]
    else:
        version = change[1]
    assert format_name(pool, version) != before


def test_a_pool_of_an_unknown_kind_is_refused():
    class EnvelopeHostPool(type(keys_and_values())):
        """Pages of this one may move."""

    pool = keys_and_values()
    pool.__class__ = EnvelopeHostPool
    with pytest.raises(LayoutError, match="cannot store as they are: leave block_format"):
        page_memory_of(pool)


@pytest.mark.parametrize("name", ["storage_format_tag", "stores_page_envelope"])
def test_a_pool_whose_bytes_are_not_plain_is_refused(name):
    pool = keys_and_values()
    setattr(pool, name, "packed")
    with pytest.raises(LayoutError, match="whose pages FlexKV cannot store as they are"):
        page_memory_of(pool)


def test_the_only_page_of_a_pool_is_known():
    pool = keys_and_values()
    whole = pool.kv_buffer.array
    pool.page_num, pool.kv_buffer = 1, host_pools.Tensor(whole[:, :1].copy())
    theirs = pool.kv_buffer.array
    keys, values = page_memory_of(pool).pieces(0)
    assert (bytes(keys), bytes(values)) == (theirs[0].tobytes(), theirs[1].tobytes())


def test_pages_that_are_not_one_distance_apart_are_refused(monkeypatch):
    pool = keys_and_values()
    theirs = pool.get_page_buffer_meta

    def moved(indices):
        addresses, sizes = theirs(indices)
        is_last = int(indices[0]) == (PAGES - 1) * TOKENS
        return [address + is_last for address in addresses], sizes

    monkeypatch.setattr(pool, "get_page_buffer_meta", moved)
    with pytest.raises(LayoutError, match="not one distance apart: leave block_format out"):
        page_memory_of(pool)


@pytest.mark.parametrize("error", [NotImplementedError("no"), ValueError("no")])
def test_a_layout_that_sglang_names_no_pieces_of_is_refused(monkeypatch, error):
    pool = keys_and_values()

    def refuse(_):
        raise error

    monkeypatch.setattr(pool, "get_page_buffer_meta", refuse)
    with pytest.raises(LayoutError, match=r"lie \(no\): set --hicache-mem-layout to page_first"):
        page_memory_of(pool)


def test_a_pool_is_not_freed_while_its_memory_is_used():
    pool = keys_and_values()
    pool_lives = weakref.ref(pool)
    memory = page_memory_of(pool)
    del pool
    assert pool_lives() is not None
    del memory
    assert pool_lives() is None
