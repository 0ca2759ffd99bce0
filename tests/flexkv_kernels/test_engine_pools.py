"""The pool of every engine goes into blocks and back, in every size of number that it may hold."""

import pytest
import torch
from engine_pools import BLOCKS, DTYPES, ENGINE_POOLS, LAYERS, TOKENS
from flexkv_kernels import PageViews, copy_pages, copy_pages_torch
from layouts import DEVICE, POISON, copy_by_hand

pytestmark = pytest.mark.gpu

BLOCK_IDS = [3, 0, 4]
COPIES = [copy_pages, copy_pages_torch]


@pytest.fixture(params=ENGINE_POOLS)
def name(request):
    return request.param


@pytest.fixture(params=DTYPES)
def pool(name, request):
    memory, slabs = ENGINE_POOLS[name](DTYPES[request.param])
    return memory, PageViews(slabs)


def stored_blocks(pages, seed=None):
    """Return blocks of `TOKENS` tokens for three, random or poisoned, and them as pages."""
    planes = len(pages.slabs) // LAYERS
    shape = (3, pages.num_heads, LAYERS, TOKENS, planes * pages.content_bytes)
    blocks = torch.full(shape, POISON, dtype=torch.uint8, device=DEVICE)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        blocks.copy_(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
    return blocks, PageViews.of_blocks(blocks, planes)


def ids_of(pages, blocks):
    """Return the ids of all pages of `blocks`."""
    per_block = TOKENS // pages.page_tokens
    return torch.tensor([block * per_block + part for block in blocks for part in range(per_block)])


@pytest.mark.parametrize("copy", COPIES)
def test_blocks_are_gathered_from_the_pool_of_an_engine(copy, pool):
    memory, pages = pool
    memory.random_(256)
    expected, expected_pages = stored_blocks(pages)
    copy_by_hand(pages, ids_of(pages, BLOCK_IDS), expected_pages, ids_of(pages, range(3)))
    got, got_pages = stored_blocks(pages)
    copy(pages, ids_of(pages, BLOCK_IDS), got_pages, ids_of(pages, range(3)))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("copy", COPIES)
def test_blocks_are_scattered_into_the_pool_and_nowhere_else(copy, pool):
    memory, pages = pool
    _, blocks = stored_blocks(pages, seed=1)
    copy_by_hand(blocks, ids_of(pages, range(3)), pages, ids_of(pages, BLOCK_IDS))
    expected = memory.clone()
    memory.fill_(POISON)
    copy(blocks, ids_of(pages, range(3)), pages, ids_of(pages, BLOCK_IDS))
    assert torch.equal(memory, expected)


def test_what_went_into_blocks_comes_back_as_it_was(name):
    memory, slabs = ENGINE_POOLS[name](torch.bfloat16)
    memory.random_(256)
    pages = PageViews(slabs)
    before = [slab.view(torch.uint8).clone() for slab in slabs]
    _, blocks = stored_blocks(pages)
    all_ids = ids_of(pages, BLOCK_IDS)
    copy_pages(pages, all_ids, blocks, ids_of(pages, range(3)))
    memory.fill_(POISON)
    copy_pages(blocks, ids_of(pages, range(3)), pages, all_ids)
    for slab, old in zip(slabs, before, strict=True):
        assert torch.equal(slab.view(torch.uint8)[all_ids], old[all_ids])


def test_every_pool_has_as_many_blocks_as_was_asked_for(name):
    pages = PageViews(ENGINE_POOLS[name](torch.bfloat16)[1])
    assert pages.num_pages * pages.page_tokens == BLOCKS * TOKENS
    assert not pages.overlaps_itself
