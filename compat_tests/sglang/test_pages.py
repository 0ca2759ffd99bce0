"""A page of SGLang's host pool, as SGLang cuts it out, has the elements that our geometry reads.

And the pools that unit tests have instead of SGLang's answer as SGLang's do.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from controller_rig import HEADS, LAYERS, SIZE, TOKENS, ControllerRig
from sglang_process import flexkv

from flexkv_connectors.sglang.host_pages import page_pool_of
from flexkv_core.testing.geometry import read_block

PAGE = 7


@pytest.fixture(params=["layer_first", "page_first", "page_first_direct", "page_head"])
def pool(model, tmp_path, request):
    """A pool whose elements are all different."""
    rig = ControllerRig(model("oracle"), request.param, flexkv(tmp_path))
    buffer = rig.pool.kv_buffer
    buffer.copy_(torch.arange(buffer.numel(), dtype=buffer.dtype).reshape(buffer.shape))
    yield rig.pool
    rig.close()


def test_a_page_has_the_same_elements(pool):
    theirs = pool.get_data_page(PAGE * TOKENS, flat=True)
    ours = np.frombuffer(read_block(page_pool_of(pool), [PAGE]), np.float32)
    assert sorted(ours) == sorted(theirs.tolist())


def test_the_last_page_ends_where_the_pool_does(pool):
    pages = page_pool_of(pool)
    ours = np.frombuffer(read_block(pages, [pages.num_pages - 1]), np.float32)
    assert ours.max() == pool.kv_buffer.max()


def test_a_token_is_its_key_and_its_value_side_by_side(pool):
    ours = np.frombuffer(read_block(page_pool_of(pool), [PAGE]), np.float32)
    keys, values = np.split(ours.reshape(HEADS, LAYERS, TOKENS, 2 * SIZE), 2, axis=-1)
    assert np.array_equal(keys + pool.kv_buffer[0].numel(), values)


@pytest.fixture
def doubles(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tests/flexkv_connectors/sglang")
    import host_pools

    yield host_pools
    del sys.modules["host_pools"]


def test_the_double_of_a_pool_answers_like_the_pool(pool, doubles):
    double = doubles.MHATokenToKVPoolHost(
        pool.layout, pool.kv_buffer.numpy(), pool.page_num, pool.page_size
    )
    assert page_pool_of(double) == page_pool_of(pool)
    if pool.layout != "layer_first":  # whose pieces the double does not name
        indices = torch.arange(3 * TOKENS, 5 * TOKENS)
        assert double.get_page_buffer_meta(indices) == tuple(pool.get_page_buffer_meta(indices))
