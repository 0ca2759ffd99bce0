"""Ranks of one model, each with its own controller and storage over one directory."""

import pytest
import torch
from controller_rig import HEADS, TOKENS, ControllerRig, places_of
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang_process import flexkv
from sidecar_rig import SidecarRig, state

NUM_PAGES = 8
PROMPT = list(range(NUM_PAGES * TOKENS))


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start the ranks of an engine on one directory, after the end of the engine before."""
    return lambda num_ranks, layout="page_first", **options: start_ranks(
        ControllerRig, layout, flexkv(tmp_path, **options), places_of(num_ranks)
    )


def backup(ranks):
    for rig in ranks:
        rig.backup(PROMPT, range(NUM_PAGES))


def prefetch(ranks, page_ids=range(30, 30 + NUM_PAGES)):
    """Return the tokens that every rank has loaded: SGLang goes by the one with the fewest."""
    return min(rig.prefetch(PROMPT, page_ids) for rig in ranks)


def whole_pages(ranks, page_ids=range(30, 30 + NUM_PAGES)):
    """Return pages with the heads of all ranks, `[page, K and V, L, N, H, D]`."""
    return torch.stack(
        [torch.cat([rig.logical_page(page) for rig in ranks], dim=3) for page in page_ids]
    )


@pytest.mark.parametrize("degrees", [(2, 2), (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
def test_one_degree_reads_what_another_has_stored(start, degrees, layout):
    former, later = degrees
    ranks = start(former, layout, max_tp=2)
    expected = whole_pages(ranks, range(NUM_PAGES))
    backup(ranks)
    ranks = start(later, layout, max_tp=2)
    assert prefetch(ranks) == len(PROMPT)
    assert torch.equal(whole_pages(ranks), expected)


def test_without_a_common_max_tp_degrees_are_kept_apart(start):
    backup(start(2))
    assert prefetch(start(1)) == 0


def test_a_page_that_one_rank_has_not_stored_is_not_found_at_another_degree(start):
    ranks = start(2, max_tp=2)
    ranks[0].backup(PROMPT, range(NUM_PAGES))
    ranks[1].backup(PROMPT[: 5 * TOKENS], range(5))
    assert prefetch(start(1, max_tp=2)) == 5 * TOKENS


def test_ranks_divide_the_room_among_themselves(start, tmp_path):
    gb = 1 / 1024
    ranks = start(2, ssd_cache_gb=gb)
    for first in range(40):
        tokens = list(range(1000 * first, 1000 * first + len(PROMPT)))
        for rig in ranks:
            rig.backup(tokens, range(NUM_PAGES))
    sizes = [slab.stat().st_size for slab in tmp_path.rglob("*.slab")]
    assert len(sizes) == len(ranks)
    assert sum(sizes) <= gb * (1 << 30)


@pytest.mark.parametrize("block_format", ["cells", "native"])
def test_of_the_ranks_that_keep_the_same_heads_one_stores_and_all_load(start, block_format):
    """SGLang asks all of them to store."""
    ranks = start(2 * HEADS, block_format=block_format)
    for writer, follower in zip(ranks[::2], ranks[1::2], strict=True):
        follower.pool.kv_buffer.copy_(writer.pool.kv_buffer)
    expected = whole_pages(ranks, range(NUM_PAGES))
    backup(ranks)
    for rig in ranks:
        rig.pool.kv_buffer.zero_()
    assert prefetch(ranks) == len(PROMPT)
    assert torch.equal(whole_pages(ranks), expected)


def test_more_ranks_than_heads_read_what_fewer_have_stored(start):
    ranks = start(HEADS)
    expected = whole_pages(ranks, range(NUM_PAGES))
    backup(ranks)
    ranks = start(2 * HEADS, max_tp=2 * HEADS)
    assert prefetch(ranks) == len(PROMPT)
    assert torch.equal(whole_pages(ranks[::2]), expected)
    assert torch.equal(whole_pages(ranks[1::2]), expected)


def test_replicas_take_no_room(start, tmp_path):
    ranks = start(2 * HEADS)
    backup(ranks)
    assert len([*tmp_path.rglob("*.slab")]) == HEADS


def test_the_room_is_divided_among_all_that_ranks_store_of_several_pools(start_ranks, tmp_path):
    """Ranks that keep the same heads have states of their own."""
    storage, sidecars = flexkv(tmp_path, ssd_cache_gb=1), {PoolName.MAMBA: state}
    ranks = start_ranks(SidecarRig, "page_first", storage, places_of(2 * HEADS), sidecars=sidecars)
    stores = [rig.storage._stores.opened for rig in ranks]
    of_kv = sum(of_rank._quota_of(of_rank._pools["kv"]) for of_rank in stores[::2])
    of_states = sum(of_rank._quota_of(of_rank._pools["mamba"]) for of_rank in stores)
    assert of_states > 0
    assert (1 << 30) - 16 <= of_kv + of_states <= 1 << 30
