"""Models that keep more than KV, on SGLang's real controller for them and its real host pools."""

import threading
from types import SimpleNamespace

import pytest
import torch
from controller_rig import TOKENS
from prometheus_client import REGISTRY
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.pool_host import PoolEntry
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang_process import flexkv
from sidecar_rig import IndexerRig, SidecarRig, indexer, state, tensors_of, window
from storage_case import OurCase

from flexkv_connectors.sglang import storage as storage_module
from flexkv_connectors.sglang import weight_updates
from flexkv_connectors.testing.hicache_pools import SidecarCase, SidecarContract
from flexkv_connectors.testing.hicache_storage import extra_of
from flexkv_core.block_store import job_queue
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.errors import ConfigError, LayoutError

PROMPT = list(range(8 * TOKENS))
KEYS = get_storage_hash_str(PROMPT, None, page_size=TOKENS)
POOLS = {
    PoolName.SWA: (SidecarRig, window),
    PoolName.MAMBA: (SidecarRig, state),
    PoolName.INDEXER: (IndexerRig, indexer),
}


class OurSidecarCase(SidecarCase):
    """Ours, over a directory."""

    def __init__(self, rig, name, directory):
        self.kv, self.name = OurCase(rig, directory), name

    def indices(self, page_ids):
        return self.kv.rig.sidecar_indices(self.name, page_ids)

    def page(self, page_id):
        return self.kv.rig.sidecar_page(self.name, page_id)


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start controllers on one directory, one after the other."""

    def start(*names, layout="page_first_direct", place=None, **options):
        kind, _ = POOLS[names[0]]
        makers = {name: POOLS[name][1] for name in names}
        storage = flexkv(tmp_path, **options)
        (rig,) = start_ranks(kind, layout, storage, [place or {}], sidecars=makers)
        return rig

    return start


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
@pytest.mark.parametrize("name", POOLS)
class TestOurSidecars(SidecarContract):
    @pytest.fixture
    def case(self, start, name, layout, tmp_path):
        return OurSidecarCase(start(name, layout=layout), name, tmp_path)


def backup(rig, *transfers):
    """Store the prompt's KV from pages 0 to 7, and what belongs to it."""
    return rig.backup_with(PROMPT, range(8), list(transfers))


def forget(rig):
    """Overwrite all that the rig's pools hold."""
    for pool in (rig.pool, *rig.sidecars.values()):
        for tensor in tensors_of(pool):
            tensor.zero_()


def test_a_window_is_restored_by_a_new_process_where_the_prompt_ends(start):
    rig = start(PoolName.SWA)
    expected = [rig.sidecar_page(PoolName.SWA, page) for page in (3, 4)]
    kv_expected = [rig.page_bytes(page) for page in range(8)]
    assert backup(rig, rig.transfer(PoolName.SWA, KEYS[6:], [3, 4])) == {"swa": 2}
    rig = start(PoolName.SWA)
    forget(rig)
    wanted = rig.transfer(PoolName.SWA, KEYS[6:], [20, 21])
    assert rig.prefetch_with(PROMPT, range(30, 38), [wanted]) == (len(PROMPT), {"swa": 2})
    assert [rig.sidecar_page(PoolName.SWA, page) for page in (20, 21)] == expected
    assert [rig.page_bytes(page) for page in range(30, 38)] == kv_expected


def test_a_prompt_is_restored_up_to_where_a_state_was_stored(start):
    rig = start(PoolName.MAMBA)
    expected = rig.sidecar_page(PoolName.MAMBA, 5)
    backup(rig, rig.transfer(PoolName.MAMBA, [KEYS[4]], [5]))
    rig = start(PoolName.MAMBA)
    forget(rig)
    wanted = rig.transfer(PoolName.MAMBA, [KEYS[7]], [20])
    assert rig.prefetch_with(PROMPT, range(30, 38), [wanted]) == (5 * TOKENS, {"mamba": 1})
    assert rig.sidecar_page(PoolName.MAMBA, 20) == expected


def test_without_its_state_a_prompt_is_computed_again(start):
    rig = start(PoolName.MAMBA)
    backup(rig)
    wanted = rig.transfer(PoolName.MAMBA, [KEYS[7]], [20])
    assert rig.prefetch_with(PROMPT, range(30, 38), [wanted]) == (0, {})


def test_what_every_page_needs_comes_back_with_it(start):
    rig = start(PoolName.INDEXER)
    of_kv = {"name": PoolName.INDEXER, "indices_from_pool": PoolName.KV}
    expected = [rig.sidecar_page(PoolName.INDEXER, page) for page in range(8)]
    assert backup(rig, PoolTransfer(**of_kv)) == {"indexer": 8}
    rig = start(PoolName.INDEXER)
    forget(rig)
    loaded, _ = rig.prefetch_with(PROMPT, range(30, 38), [PoolTransfer(**of_kv)])
    assert loaded == len(PROMPT)
    assert [rig.sidecar_page(PoolName.INDEXER, page) for page in range(30, 38)] == expected


def test_pages_without_what_every_page_needs_end_the_prompt(start):
    rig = start(PoolName.INDEXER)
    backup(rig)
    keys, policy = KEYS[:3], PoolHitPolicy.ALL_PAGES
    rig.storage.batch_set_v2([rig.transfer(PoolName.INDEXER, keys, range(3), policy)], extra_of([]))
    wanted = PoolTransfer(name=PoolName.INDEXER, indices_from_pool=PoolName.KV)
    assert rig.prefetch_with(PROMPT, range(30, 38), [wanted])[0] == 3 * TOKENS


def test_pools_beside_each_other_have_to_agree_where_a_prompt_ends(start):
    names = (PoolName.SWA, PoolName.MAMBA)
    rig = start(*names)
    backup(
        rig,
        rig.transfer(PoolName.SWA, KEYS[2:4] + KEYS[6:], [2, 3, 6, 7]),
        rig.transfer(PoolName.MAMBA, [KEYS[3], KEYS[5]], [3, 5]),
    )
    rig = start(*names)
    wanted = [
        rig.transfer(PoolName.SWA, KEYS[6:], [20, 21]),
        rig.transfer(PoolName.MAMBA, [KEYS[7]], [20]),
    ]
    loaded = rig.prefetch_with(PROMPT, range(30, 38), wanted)
    assert loaded == (4 * TOKENS, {"swa": 2, "mamba": 1})


def found(rig, name):
    """Tell which pages of the prompt the storage has of a pool."""
    wanted = rig.transfer(name, KEYS, range(20, 28))
    return rig.storage.batch_get_v2([wanted], extra_of([]))[name]


def store(rig, name):
    """Store all pages of the prompt of a pool."""
    wanted = rig.transfer(name, KEYS, range(8))
    assert all(rig.storage.batch_set_v2([wanted], extra_of([]))[name])


@pytest.mark.parametrize("name", [PoolName.SWA, PoolName.MAMBA])
def test_each_rank_has_pages_of_its_own(start, name):
    places = [{"rank": rank, "num_ranks": 2} for rank in range(2)]
    store(start(name, place=places[0]), name)
    assert not any(found(start(name, place=places[1]), name))
    assert all(found(start(name, place=places[0]), name))
    assert not any(found(start(name), name))


def test_pages_of_another_layout_are_a_miss(start):
    store(start(PoolName.MAMBA, layout="page_first"), PoolName.MAMBA)
    assert not any(found(start(PoolName.MAMBA, layout="page_first_direct"), PoolName.MAMBA))
    assert all(found(start(PoolName.MAMBA, layout="page_first"), PoolName.MAMBA))


def test_states_of_other_numbers_of_the_same_size_are_a_miss(start, monkeypatch):
    def other(rig):
        pool = state(rig)
        pool.temporal_dtype = torch.int32
        return pool

    store(start(PoolName.MAMBA), PoolName.MAMBA)
    monkeypatch.setitem(POOLS, PoolName.MAMBA, (SidecarRig, other))
    assert not any(found(start(PoolName.MAMBA), PoolName.MAMBA))


def test_pages_of_one_pool_are_not_taken_for_those_of_another(start, monkeypatch):
    monkeypatch.setitem(POOLS, PoolName.DRAFT, POOLS[PoolName.SWA])
    store(start(PoolName.SWA), PoolName.SWA)
    assert not any(found(start(PoolName.DRAFT), PoolName.DRAFT))
    assert all(found(start(PoolName.SWA), PoolName.SWA))


def test_all_pools_together_stay_within_the_room(start, tmp_path):
    gb = 4 / 1024
    rig = start(PoolName.SWA, PoolName.MAMBA, ssd_cache_gb=gb)
    for first in range(60):
        tokens = list(range(1000 * first, 1000 * first + len(PROMPT)))
        keys = get_storage_hash_str(tokens, None, page_size=TOKENS)
        transfers = [rig.transfer(name, keys, range(8)) for name in rig.sidecars]
        stored = rig.backup_with(tokens, range(8), transfers)
        assert stored == {"swa": 8, "mamba": 8}
    sizes = [slab.stat().st_size for slab in tmp_path.rglob("*.slab")]
    assert len(sizes) == 3
    assert gb * (1 << 30) / 2 < sum(sizes) <= gb * (1 << 30)


def test_a_pool_that_comes_while_the_storage_is_attached_is_stored_as_well(start):
    rig = start(PoolName.SWA)
    pool = state(rig)
    rig.sidecars[PoolName.MAMBA] = pool
    entry = PoolEntry(PoolName.MAMBA, pool, rig.device, int)
    rig.controller.register_host_pool_entry(entry)
    for _, its_store in rig.storage._stores.opened:
        its_store.wait_restored()
    store(rig, PoolName.MAMBA)
    assert all(found(rig, PoolName.MAMBA))


def test_a_call_for_pools_beside_the_kv_does_not_touch_the_kv(start):
    """It says no prefix, without which a page of KV is of another place in its sequence."""
    rig = start(PoolName.SWA)
    before = rig.pool.kv_buffer.clone()
    kv = PoolTransfer(name=PoolName.KV, host_indices=rig.indices(range(8)), keys=KEYS)
    assert not any(rig.storage.batch_set_v2([kv], extra_of([]))[PoolName.KV])
    assert rig.storage.batch_exists(KEYS, extra_of([])) == 0
    assert all(rig.storage.batch_set_v1(KEYS, rig.indices(range(8)), extra_of([])))
    forget(rig)
    emptied = rig.pool.kv_buffer.clone()
    assert not torch.equal(before, emptied)
    assert not any(rig.storage.batch_get_v2([kv], extra_of([]))[PoolName.KV])
    assert torch.equal(rig.pool.kv_buffer, emptied)


def test_a_pool_that_was_never_registered_has_no_pages(start):
    rig = start(PoolName.SWA)
    keys = KEYS[:2]
    wanted = PoolTransfer(name=PoolName.MAMBA, keys=keys, host_indices=torch.arange(2))
    assert rig.storage.batch_set_v2([wanted], extra_of([])) == {"mamba": [False, False]}
    assert rig.storage.batch_get_v2([wanted], extra_of([])) == {"mamba": [False, False]}
    assert rig.storage.batch_exists_v2(keys, [wanted], extra_of([])).kv_hit_pages == 0


def test_without_keys_before_a_call_parts_are_not_stored_either(start):
    rig = start(PoolName.SWA)
    wanted = rig.transfer(PoolName.SWA, KEYS, range(8))
    assert rig.storage.batch_set_v2([wanted]) == {"swa": [False] * 8}
    assert not any(found(rig, PoolName.SWA))


def test_former_weights_take_their_parts_with_them(start):
    rig = start(PoolName.SWA)
    store(rig, PoolName.SWA)
    rig.storage.forget_weights()
    assert not any(found(rig, PoolName.SWA))
    store(rig, PoolName.SWA)
    assert all(found(rig, PoolName.SWA))
    assert all(found(start(PoolName.SWA), PoolName.SWA))


def test_parts_of_weights_that_changed_while_it_was_detached_are_not_found(start, monkeypatch):
    rig = start(PoolName.SWA)
    store(rig, PoolName.SWA)
    rig.controller.detach_storage_backend()
    with monkeypatch.context() as this_process:
        this_process.setattr(weight_updates, "_changed", threading.Event())
        scheduler = SimpleNamespace(forward_ct=0)
        weight_updates.begin()
        weight_updates.flushed(True, scheduler)
        weight_updates.updated(None, SimpleNamespace(scheduler=scheduler))
        rig.attach()
        assert not any(found(rig, PoolName.SWA))
    assert all(found(start(PoolName.SWA), PoolName.SWA))


@pytest.mark.parametrize("pool", [PoolName.KV, PoolName.SWA])
def test_while_reads_of_a_pool_are_off_there_is_no_hit_until_one_may_be_tried(
    start, pool, monkeypatch
):
    """The reads of the other pool go on."""
    rig = start(PoolName.SWA)
    store(rig, PoolName.SWA)
    backup(rig)
    wanted = [rig.transfer(PoolName.SWA, KEYS[6:], [20, 21])]
    loads = rig.storage._stores.opened.get(str(pool))._loads
    assert rig.storage.batch_exists_v2(KEYS, wanted, extra_of([])).kv_hit_pages == len(KEYS)
    loads._health.note_silence(loads._clock())
    assert rig.storage.batch_exists_v2(KEYS, wanted, extra_of([])).kv_hit_pages == 0
    later_s = loads._clock() + 31
    monkeypatch.setattr(loads, "_clock", lambda: later_s)
    assert rig.prefetch_with(PROMPT, range(30, 38), wanted) == (len(PROMPT), {"swa": 2})
    assert not loads.is_off


def test_no_exception_of_ours_reaches_sglang(start, monkeypatch):
    rig = start(PoolName.SWA)
    monkeypatch.setattr(BlockStore, "lookup", lambda *_: 1 // 0)
    backup(rig)
    wanted = [rig.transfer(PoolName.SWA, KEYS[6:], [20, 21])]
    assert rig.storage.batch_exists_v2(KEYS, wanted, extra_of([])).kv_hit_pages == 0
    assert not any(found(rig, PoolName.SWA))


def test_each_pool_counts_for_itself(start):
    rig = start(PoolName.SWA)
    before = sample("flexkv:save_bytes_total", PoolName.SWA)
    store(rig, PoolName.SWA)
    rig.storage.get_stats()
    page_bytes = len(rig.sidecar_page(PoolName.SWA, 0))
    assert sample("flexkv:save_bytes_total", PoolName.SWA) - before == 8 * page_bytes


def sample(name, pool):
    labels = {"tp_rank": "0", "pp_rank": "0", "dp_rank": "0", "pool": str(pool)}
    return REGISTRY.get_sample_value(name, labels) or 0


def of_unknown_kind(rig):
    """Make a pool whose pages may move."""
    pool = window(rig)
    pool.__class__ = type("EnvelopeHostPool", (type(pool),), {})
    return pool


def with_a_state_beside_the_state(rig):
    """Make a pool of states that SGLang itself cannot name the pieces of."""
    pool = state(rig)
    pool.slot_state_device_tensors = [torch.zeros(1)]
    return pool


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (of_unknown_kind, "is a EnvelopeHostPool, whose pages FlexKV cannot store"),
        (with_a_state_beside_the_state, "does not say where pages of its MambaPoolHost lie"),
    ],
)
def test_a_pool_that_cannot_be_stored_stops_the_attach_in_one_sentence(
    start, monkeypatch, make, sentence
):
    monkeypatch.setitem(POOLS, PoolName.MAMBA, (SidecarRig, make))
    with pytest.raises(LayoutError, match=sentence) as caught:
        start(PoolName.MAMBA)
    assert "\n" not in str(caught.value)


def test_before_sglang_0_5_23_a_model_with_more_than_kv_is_refused(start, monkeypatch):
    monkeypatch.setattr(storage_module, "_KNOWS_SIDECARS", False)
    with pytest.raises(ConfigError, match=r"pool swa beside its KV, which is stored from SGLang"):
        start(PoolName.SWA)


def test_pools_of_pipeline_stages_are_refused(start, monkeypatch):
    rig = start(PoolName.SWA)
    monkeypatch.setattr(rig.storage._config, "pp_size", 2)
    with pytest.raises(ConfigError, match="are spread over 2 pipeline stages; serve this model"):
        rig.storage.register_mem_host_pool_v2(rig.sidecars[PoolName.SWA], PoolName.DRAFT)


def test_a_disk_that_hangs_switches_the_cache_off_and_stops_nobody(start, monkeypatch):
    rig = start(PoolName.SWA)
    assert all(rig.storage.batch_set_v1(KEYS, rig.indices(range(8)), extra_of([])))
    monkeypatch.setattr(job_queue, "_GRACE_S", 0.0)
    saves = rig.storage._stores.opened.get("kv")._saves
    monkeypatch.setattr(saves, "_limit_s", 0.0)
    with monkeypatch.context() as hanging:
        hanging.setattr(saves._lane, "drain", lambda _: False)
        rig.storage.clear()
        assert rig.storage.batch_exists(KEYS) == 0
        assert "TierError" in rig.storage._barrier.reason
        rig.storage.get_stats()
