"""Our storage behind SGLang's real controller and host pools, without an engine."""

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from controller_rig import HEADS, LAYERS, TOKENS, ControllerRig
from prometheus_client import REGISTRY
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang.srt.observability.metrics_collector import StorageMetrics, StorageMetricsCollector
from sglang.srt.runtime_context import get_parallel
from sglang_process import flexkv
from storage_case import OurCase

from flexkv_connectors.sglang import settings as settings_module
from flexkv_connectors.sglang import storage as storage_module
from flexkv_connectors.sglang import weight_updates
from flexkv_connectors.sglang.settings import keeps_released_weights, read_settings
from flexkv_connectors.testing.hicache_storage import HiCacheStorageContract, extra_of
from flexkv_core.errors import ConfigError

LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head"]


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start controllers on one directory, one after the other."""

    def start(layout="page_first", **options):
        (rig,) = start_ranks(ControllerRig, layout, flexkv(tmp_path, **options))
        return rig

    return start


@pytest.fixture
def change(monkeypatch):
    """Return a function that changes server arguments, all of which SGLang really has."""

    def change(arguments):
        read = settings_module._resolved_arguments()

        def read_changed(name):
            value = read(name)
            return arguments.get(name, value)

        monkeypatch.setattr(settings_module, "_resolved_arguments", lambda: read_changed)

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
class TestOurStorage(HiCacheStorageContract):
    @pytest.fixture
    def case(self, start, layout, tmp_path):
        return OurCase(start(layout), tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_process_prefetches_what_the_last_one_backed_up(start, layout):
    rig = start(layout)
    tokens = list(range(20 * TOKENS))
    rig.backup(tokens, range(20))
    expected = [rig.page_bytes(page) for page in range(20)]
    rig = start(layout)
    rig.pool.kv_buffer.zero_()
    targets = list(range(60, 40, -1))
    assert rig.prefetch(tokens, targets) == 20 * TOKENS
    assert [rig.page_bytes(page) for page in targets] == expected


@pytest.mark.parametrize("block_format", ["cells", "native"])
def test_without_time_to_read_no_hit_is_claimed_and_pages_are_stored(start, block_format):
    rig = start(block_format=block_format, promotion_timeout_s=0)
    tokens = list(range(8 * TOKENS))
    rig.backup(tokens, range(8))
    for _ in range(4):
        assert rig.prefetch(tokens, range(20, 28)) == 0
    store = rig.storage._stores.opened.get("kv")
    assert store.take_counts()["ssd_off"] == 0
    assert start(block_format=block_format).prefetch(tokens, range(8)) == 8 * TOKENS


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts_read_what_other_layouts_have_stored(start, layout):
    rig = start("layer_first")
    tokens = list(range(8 * TOKENS))
    rig.backup(tokens, range(8))
    expected = [rig.logical_page(page) for page in range(8)]
    rig = start(layout)
    rig.pool.kv_buffer.zero_()
    assert rig.prefetch(tokens, range(8)) == 8 * TOKENS
    assert all(map(torch.equal, map(rig.logical_page, range(8)), expected))


def test_without_prefix_keys_nothing_is_stored_and_it_is_said_once(start, caplog):
    rig = start()
    indices = rig.indices(range(2))
    keys = [bytes([1] * 32).hex(), bytes([2] * 32).hex()]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert rig.storage.batch_set_v1(keys, indices) == [False, False]
    assert caplog.text.count("hicache_storage_pass_prefix_keys") == 1
    assert rig.storage.batch_exists(keys) == 0


def test_no_exception_of_ours_reaches_sglang(start, monkeypatch):
    rig = start()
    monkeypatch.setattr(storage_module, "page_ids_of", lambda *_: 1 // 0)
    keys = [bytes([1] * 32).hex()]
    assert rig.storage.batch_get_v1(keys, rig.indices([0])) == [False]
    assert rig.storage.batch_exists(keys) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ssd_cache_gib": 1}, "did you mean ssd_cache_gb"),
        ({"interface_v1": 0}, "interface_v1 is not set"),
        ({"cpu_cache_gb": 1}, "--hicache-size"),
        ({"block_tokens": 64}, "--page-size 64"),
        ({"max_tp": 3}, "max_tp is 3"),
        ({"block_format": "pages"}, "expected 'cells' or 'native'"),
        ({"block_format": "native", "max_tp": 2}, "leave one of the two out"),
    ],
)
def test_an_option_that_cannot_be_used_stops_the_attach_in_one_sentence(start, options, sentence):
    with pytest.raises((ConfigError, ValueError), match=sentence) as caught:
        start(**options)
    assert "\n" not in str(caught.value)


def test_where_changes_of_weights_are_not_followed_nothing_is_stored(start, monkeypatch):
    monkeypatch.setattr(weight_updates, "_followed", [])
    monkeypatch.setattr(weight_updates, "register", lambda: None)
    with pytest.raises(ConfigError, match="SGLANG_PLUGINS"):
        start()


def test_weights_that_changed_while_it_was_detached_have_blocks_of_their_own(start, monkeypatch):
    tokens = list(range(4 * TOKENS))
    rig = start()
    rig.backup(tokens, range(4))
    rig.controller.detach_storage_backend()
    with monkeypatch.context() as this_process:
        this_process.setattr(weight_updates, "_changed", threading.Event())
        scheduler = SimpleNamespace(forward_ct=0)
        weight_updates.begin()
        weight_updates.flushed(True, scheduler)
        weight_updates.updated(None, SimpleNamespace(scheduler=scheduler))
        rig.attach()
        assert rig.prefetch(tokens, range(10, 14)) == 0
        rig.backup(tokens, range(4))
        assert rig.prefetch(tokens, range(10, 14)) == 4 * TOKENS
        rig.attach_again()
        assert rig.prefetch(tokens, range(10, 14)) == 0
    assert start().prefetch(tokens, range(10, 14)) == 4 * TOKENS


def test_nothing_is_stored_or_found_from_a_change_until_sglang_has_dropped_the_rest(
    start, monkeypatch
):
    for name, fresh in (("_changed", threading.Event()), ("_mixed", threading.Event())):
        monkeypatch.setattr(weight_updates, name, fresh)
    tokens = list(range(4 * TOKENS))
    keys, extra = get_storage_hash_str(tokens, None, page_size=TOKENS), extra_of([])
    rig = start()
    manager = SimpleNamespace(scheduler=SimpleNamespace(forward_ct=0))
    weight_updates.open_session()
    assert rig.storage.batch_set_v1(keys, rig.indices(range(4)), extra) == [False] * 4
    weight_updates.end_session(None, manager)
    assert rig.storage.batch_set_v1(keys, rig.indices(range(4)), extra) == [False] * 4
    assert rig.prefetch(tokens, range(10, 14)) == 0
    weight_updates.flushed(True, manager.scheduler)
    assert rig.prefetch(tokens, range(10, 14)) == 0
    rig.backup(tokens, range(4))
    assert rig.prefetch(tokens, range(10, 14)) == 4 * TOKENS


def test_a_detached_storage_answers_and_can_be_attached_again(start):
    rig = start()
    rig.backup(list(range(4 * TOKENS)), range(4))
    storage = rig.storage
    rig.controller.detach_storage_backend()
    assert storage.batch_exists([bytes(32).hex()]) == 0
    rig.attach()
    assert rig.prefetch(list(range(4 * TOKENS)), range(10, 14)) == 4 * TOKENS


def sample(name, **labels):
    labels = {"tp_rank": "0", "pp_rank": "0", "dp_rank": "0", "pool": "kv"} | labels
    return REGISTRY.get_sample_value(name, labels) or 0


def test_pages_and_speeds_are_reported_once_and_sglang_takes_them(start):
    rig = start()
    rig.backup(list(range(20 * TOKENS)), range(20))
    rig.prefetch(list(range(20 * TOKENS)), range(30, 50))
    stats = rig.storage.get_stats()
    assert (stats.backup_pgs, stats.prefetch_pgs) == ([20], [20])
    assert all(0 < speed < 1e3 for speed in stats.backup_bandwidth + stats.prefetch_bandwidth)
    StorageMetricsCollector({"storage_backend": "flexkv"}).log_storage_metrics(stats)
    assert REGISTRY.get_sample_value("sglang:prefetch_pgs_sum", {"storage_backend": "flexkv"}) == 20
    assert rig.storage.get_stats() == StorageMetrics()


def test_counts_are_among_the_metrics_of_the_process_also_after_a_new_attach(start):
    before = sample("flexkv:save_bytes_total")
    rig = start()
    page_bytes = len(rig.page_bytes(0))
    for first in (0, 10):
        rig.backup(list(range(first, first + 4 * TOKENS)), range(4))
        rig.storage.get_stats()
        rig.attach_again()
    assert sample("flexkv:save_bytes_total") - before == 8 * page_bytes
    assert sample("flexkv:switched_off") == 0


def test_a_storage_that_has_failed_says_so_in_its_metrics(start, monkeypatch):
    rig = start()
    monkeypatch.setattr(storage_module, "page_ids_of", lambda *_: 1 // 0)
    rig.storage.batch_get_v1([bytes([1] * 32).hex()], rig.indices([0]))
    assert rig.storage.get_stats() == StorageMetrics()
    assert sample("flexkv:switched_off") == 1


def test_metrics_that_fail_cost_the_metrics_alone(start, monkeypatch):
    rig = start()
    monkeypatch.setattr(rig.storage._stats, "note", lambda _: 1 // 0)
    assert rig.storage.get_stats() == StorageMetrics()
    rig.backup(list(range(4 * TOKENS)), range(4))
    assert rig.prefetch(list(range(4 * TOKENS)), range(10, 14)) == 4 * TOKENS


def test_a_storage_that_has_failed_lets_go_of_its_files(start, monkeypatch):
    rig = start()
    tokens = list(range(4 * TOKENS))
    rig.backup(tokens, range(4))
    with monkeypatch.context() as failing:
        failing.setattr(storage_module, "page_ids_of", lambda *_: 1 // 0)
        assert rig.storage.batch_get_v1([bytes([1] * 32).hex()], rig.indices([0])) == [False]
    assert rig.prefetch(tokens, range(10, 14)) == 0
    rig.attach_again()
    assert rig.prefetch(tokens, range(10, 14)) == 4 * TOKENS


def test_settings_are_read_as_they_are_in_effect(start, model):
    start()
    with get_parallel().override(dp_rank=1):
        settings = read_settings()
    assert (settings.engine_index, settings.num_nodes, settings.tp_size) == (1, 1, 1)
    assert settings.model == str(model("oracle"))
    assert (settings.num_layers, settings.num_kv_heads) == (LAYERS, HEADS)
    assert (settings.dtype, settings.quantization) == ("torch.float32", "")
    assert (settings.load_format, settings.implementation) == ("auto", "auto")
    assert (settings.speculative_algorithm, settings.adapters) == ("", {})
    assert "rope_theta" in settings.rope
    assert not settings.is_multimodal
    assert settings.needs_every_token == ""
    assert keeps_released_weights()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dllm_algorithm": "LowConfidence"}, "from later ones"),
        ({"enable_return_routed_experts": True}, "computed tokens only"),
        ({"enable_return_indexer_topk": True}, "computed tokens only"),
    ],
)
def test_an_engine_whose_requests_may_need_every_token_is_refused(start, change, arguments, reason):
    rig = start()
    change(arguments)
    with pytest.raises(ConfigError, match=reason):
        rig.attach_again()


def test_weights_of_another_process_need_a_name(start, change):
    rig = start()
    change({"weight_cache_mode": "client"})
    with pytest.raises(ConfigError, match="set weight_version"):
        rig.attach_again()


@pytest.mark.parametrize("is_kept", [False, True])
def test_released_weights_are_kept_where_sglang_copies_them(start, change, is_kept):
    start()
    change({"enable_memory_saver": True, "enable_weights_cpu_backup": is_kept})
    assert keeps_released_weights() == is_kept


def test_a_cleared_storage_forgets_on_disk_as_well(start):
    rig = start()
    tokens = list(range(4 * TOKENS))
    rig.backup(tokens, range(4))
    rig.storage.clear()
    assert rig.prefetch(tokens, range(10, 14)) == 0
    assert start().prefetch(tokens, range(10, 14)) == 0


def test_what_is_stored_after_a_clear_outlives_the_process(start):
    rig = start()
    rig.storage.clear()
    tokens = list(range(4 * TOKENS))
    rig.backup(tokens, range(4))
    assert start().prefetch(tokens, range(10, 14)) == 4 * TOKENS


def test_a_controller_that_was_reset_goes_on_with_the_storage(start):
    rig = start()
    tokens = list(range(4 * TOKENS))
    rig.backup(tokens, range(4))
    rig.controller.reset()  # what flush_cache does: new threads over the same storage
    assert rig.prefetch(tokens, range(10, 14)) == 4 * TOKENS
    rig.backup(list(range(100, 100 + 4 * TOKENS)), range(4))
