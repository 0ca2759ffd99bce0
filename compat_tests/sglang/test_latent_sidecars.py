"""What a model of latents keeps beside its KV, on several ranks: the first stores, all load."""

import pytest
from controller_rig import TOKENS, places_of
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang_process import flexkv
from sidecar_rig import IndexerRig, indexer, state, tensors_of, window

from flexkv_core.errors import ConfigError

NUM_PAGES = 8
PROMPT = list(range(NUM_PAGES * TOKENS))
KEYS = get_storage_hash_str(PROMPT, None, page_size=TOKENS)
TARGETS = range(30, 38)


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start the ranks of an engine on one directory, after the end of the engine before."""
    return lambda num_ranks, sidecars, **options: start_ranks(
        IndexerRig,
        "page_first_direct",
        flexkv(tmp_path, **options),
        places_of(num_ranks),
        sidecars=sidecars,
    )


def indices():
    """Return what SGLang asks for beside each page of KV."""
    return [PoolTransfer(name=PoolName.INDEXER, indices_from_pool=PoolName.KV)]


def content(rig, page_ids):
    return [(rig.page_bytes(page), rig.sidecar_page(PoolName.INDEXER, page)) for page in page_ids]


def forget(rig):
    for pool in (rig.pool, *rig.sidecars.values()):
        for tensor in tensors_of(pool):
            tensor.zero_()


@pytest.mark.parametrize("degrees", [(2, 2), (1, 2), (2, 1)], ids=str)
def test_every_rank_loads_the_indexer_that_the_first_has_stored(start, degrees):
    before, after = degrees
    ranks = start(before, {PoolName.INDEXER: indexer})
    expected = content(ranks[0], range(NUM_PAGES))
    assert ranks[0].backup_with(PROMPT, range(NUM_PAGES), indices()) == {"indexer": NUM_PAGES}
    ranks += start(after, {PoolName.INDEXER: indexer})
    for rig in ranks[before:]:
        forget(rig)
        loaded, _ = rig.prefetch_with(PROMPT, TARGETS, indices())
        assert loaded == len(PROMPT)
        assert content(rig, TARGETS) == expected


def test_ranks_of_a_running_engine_load_what_the_first_stores(start):
    first, second = start(2, {PoolName.INDEXER: indexer})
    expected = content(first, range(NUM_PAGES))
    assert second.prefetch_with(PROMPT, TARGETS, indices()) == (0, {})
    first.backup_with(PROMPT, range(NUM_PAGES), indices())
    assert second.prefetch_with(PROMPT, TARGETS, indices())[0] == len(PROMPT)
    assert content(second, TARGETS) == expected


def test_without_its_indexer_no_rank_restores_a_prompt(start):
    first, second = start(2, {PoolName.INDEXER: indexer})
    first.backup(PROMPT, range(NUM_PAGES))
    assert second.prefetch_with(PROMPT, TARGETS, indices()) == (0, {})


@pytest.mark.parametrize("keeps_name", [True, False])
def test_former_weights_take_the_indexer_with_them_on_every_rank(start, keeps_name):
    options = {"weight_version": "v1"} if keeps_name else {}
    first, second = start(2, {PoolName.INDEXER: indexer}, **options)
    first.backup_with(PROMPT, range(NUM_PAGES), indices())
    for rig in (second, first):
        rig.storage.forget_weights()
        assert second.prefetch_with(PROMPT, TARGETS, indices()) == (0, {})
    first.fill(7)
    first.backup_with(PROMPT, range(NUM_PAGES), indices())
    assert second.prefetch_with(PROMPT, TARGETS, indices())[0] == len(PROMPT)
    assert content(second, TARGETS) == content(first, range(NUM_PAGES))


def test_a_state_is_each_ranks_own(start):
    """SGLang lets every rank store its own, also where the KV is the same."""
    ranks = start(2, {PoolName.MAMBA: state})
    expected = [rig.sidecar_page(PoolName.MAMBA, 3) for rig in ranks]
    assert expected[0] != expected[1]
    ranks[0].backup_with(PROMPT, range(8), [ranks[0].transfer(PoolName.MAMBA, KEYS[7:], [3])])
    _back_up_a_state(ranks[1])
    for rig, state_bytes in zip(ranks, expected, strict=True):
        wanted = rig.transfer(PoolName.MAMBA, KEYS[7:], [20])
        assert rig.prefetch_with(PROMPT, TARGETS, [wanted])[0] == len(PROMPT)
        assert rig.sidecar_page(PoolName.MAMBA, 20) == state_bytes


def test_a_pool_that_is_not_the_same_on_all_ranks_is_refused(start):
    """SGLang would let the first rank store its part, and take it for everybody's."""
    with pytest.raises(ConfigError, match="only the first of its 2 ranks would write it"):
        start(2, {PoolName.DRAFT: _keys_and_values})


def _keys_and_values(rig):
    pool = window(rig)
    pool.__class__ = type("MHATokenToKVPoolHost", (type(pool),), {})
    return pool


def _back_up_a_state(rig):
    """Let a rank that does not store KV store its state."""
    extra = [rig.transfer(PoolName.MAMBA, KEYS[7:], [3])]
    rig.controller.write_storage(
        rig.indices(range(8)), PROMPT, KEYS, prefix_keys=[], extra_pools=extra
    )
    operation = rig.controller.ack_backup_queue.get(timeout=60)
    assert operation.completed_tokens in (0, len(PROMPT))
