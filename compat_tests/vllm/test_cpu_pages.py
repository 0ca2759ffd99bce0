"""The order within a page of vLLM's CPU attention is what its own kernel writes."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops

from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.vllm.cpu_pages import split_vec
from flexkv_connectors.vllm.kv_caches import page_pool
from flexkv_core.testing.geometry import read_block

NUM_PAGES, HEADS, TOKENS, HEAD_SIZE = 3, 2, 32, 64


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def written(request):
    """Return a cache, and the keys and values that vLLM's kernel has put into it."""
    cache = torch.zeros(NUM_PAGES, HEADS, TOKENS, 2 * HEAD_SIZE, dtype=request.param)
    shape = NUM_PAGES * TOKENS, HEADS, HEAD_SIZE
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(shape, generator=generator).to(request.param) for _ in range(2))
    planes = cache.view(NUM_PAGES, HEADS, 2 * TOKENS, HEAD_SIZE).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, *planes, torch.arange(shape[0]), "vec")
    return cache, keys, values


def packed(cache):
    token_bytes = 2 * HEAD_SIZE * cache.element_size()
    return page_pool({"model.layers.0.attn": cache}, PageShape(HEADS, TOKENS, token_bytes))


def block_of(keys, values, page):
    """Return `[H, N, C]` of one page, as it is stored."""
    tokens = torch.cat([keys, values], dim=-1)[page * TOKENS : (page + 1) * TOKENS]
    return tokens.transpose(0, 1).contiguous().view(torch.uint8).numpy().tobytes()


def test_a_page_is_read_in_the_order_of_tokens(written):
    cache, keys, values = written
    pages = split_vec(packed(cache), cache.element_size(), HEAD_SIZE)
    for page in range(NUM_PAGES):
        block = np.frombuffer(read_block(pages, [page]), np.uint8)
        expected = np.frombuffer(block_of(keys, values, page), np.uint8)
        assert np.array_equal(block, expected)


def test_as_declared_it_would_be_read_wrong(written):
    cache, keys, values = written
    assert read_block(packed(cache), [1]) != block_of(keys, values, 1)
