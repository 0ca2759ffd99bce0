"""Every change that people found by reading the engines is found by the tool, on the records."""

import functools

import pytest

from compat_tests.contract.drift import changes
from compat_tests.contract.engines import ENGINES
from compat_tests.contract.records import load

BASE = "kv_connector.v1.base.KVConnectorBase_V1"
TIERING = "kv_offload.tiering"
HICACHE = "mem_cache.hicache_storage"

VLLM_024_028 = {
    f"added {BASE}.supports_divergent_local_hybrid_hits",
    f"added {BASE}.requires_kv_delivery",
    "added sched.output.SchedulerOutput.partial_tail_offloads",
    "added sched.output.SchedulerOutput.kv_cache_block_copies",
    "added distributed.kv_events.BlockStored.locality",
    "added distributed.kv_events.BlockRemoved.locality",
    "added distributed.kv_events.EventPublisher.get_publisher_config",
    "changed sched.scheduler.Scheduler._connector_finished body",
    "changed flash_attn.FlashAttentionBackend.get_kv_cache_shape body",
}
VLLM_028_032 = {
    f"removed {BASE}.prefer_cross_layer_blocks",
    f"removed {BASE}.register_cross_layers_kv_cache",
    "added v1.kv_cache_layout.KVCacheLayout",
    "added v1.kv_cache_layout.KVCacheLayout.BLHNC",
    "added kv_connector.v1.base.KVConnectorTransferResults.failed_recving",
    f"added {BASE}.get_transfer_results",
    f"added {BASE}.get_external_cache_hit_sources",
    f"added {BASE}._cache_hit_source",
    "added v1.metrics.cache_hit_source",
    f"added {BASE}.bind_kv_cache_manager",
    f"added {BASE}.get_loaded_kv_cache_group_ids",
    f"added {BASE}.register_finished_partial_tail",
    f"added {BASE}.has_pending_block_frees",
    f"added {BASE}.get_mem_pool_context",
    f"added {BASE}.finish_forward",
    f"added {BASE}.reset_capture_state",
    "added kv_connector.factory.register_connector('HiSparseConnector')",
    "removed config.kv_transfer.KVTransferConfig.kv_rank",
    "removed config.kv_transfer.KVTransferConfig.kv_parallel_size",
    "removed config.kv_transfer.KVTransferConfig.kv_ip",
    "removed config.kv_transfer.KVTransferConfig.kv_buffer_size",
    "added config.kv_transfer.KVTransferConfig.has_connector",
    "added config.kv_transfer.hisparse_host_pool_gib",
    "added v1.outputs.KVConnectorOutput.failed_recving",
    "added sched.output.SchedulerOutput.has_sync_kv_loads",
    "added sched.output.SchedulerOutput.kv_connector_block_state",
    "removed sched.output.SchedulerOutput.partial_tail_offloads",
    "added kv_connector.v1.metrics.KVConnectorStats.to_dict",
    "removed v1.kv_cache_interface.KVCacheTensor.shared_by",
    "added v1.kv_cache_interface.KVCacheTensor.layers",
    "added v1.kv_cache_interface.KVCacheTensor.layer_stride",
    "changed v1.kv_cache_interface.KVCacheTensor.block_stride",
    "added v1.kv_cache_interface.KVCacheConfig.kv_cache_layout",
    "added v1.kv_cache_interface.KVCacheConfig.hash_block_size",
    "added v1.kv_cache_interface.KVCacheConfig.prefix_cacheable_group_ids",
    "added v1.kv_cache_interface.KVCacheConfig.transfer_group_ids",
    "added v1.kv_cache_interface.KVCacheConfig.kv_tp_replicas",
    "added distributed.kv_events.BlockStored.ownership",
    "added distributed.kv_events.BlockStored.session_id",
    "added distributed.kv_events.BlockRemoved.ownership",
    "added distributed.kv_events.ZmqEventPublisher._is_bind_endpoint",
    "added distributed.kv_events.ZmqEventPublisher._bind",
    # Behaviour: loads after the forward pass, saves on empty steps, seeds of block hashes.
    "changed KVConnectorModelRunnerMixin._get_kv_connector_output order",
    "changed gpu.kv_connector.ActiveKVConnector.pre_forward order",
    "changed gpu.kv_connector.ActiveKVConnector.post_forward order",
    "changed v1.core.kv_cache_utils.init_none_hash body",
    # vLLM's own offloading.
    f"removed {TIERING}.base.TransferJob.block_ids",
    f"added {TIERING}.base.TransferJob.chunk_ids",
    f"added {TIERING}.base.JobResult.transfer_bytes",
    f"changed {TIERING}.base.SecondaryTierManager.__init__",
    f"changed {TIERING}.factory.SecondaryTierFactory.create_secondary_tier body",
    "added kv_offload.base.ReqContext.get_offload_key_position",
    "added kv_offload.config.OffloadingConfig.kv_cache_layout",
}
VLLM_032_033 = {
    f"added {BASE}.supports_sleep_mode",
    f"added {BASE}.unregister_kv_caches",
    f"added {BASE}.restore_kv_caches",
    "added distributed.kv_events.BlockStored.lookahead_token_ids",
    "changed gpu.kv_connector.ActiveKVConnector.post_forward",
    "added gpu.kv_connector.ActiveKVConnector.finalize_step",
    "added sched.scheduler.Scheduler._drain_deferred_loads order",
    # A tier may be polled by a thread of its own, and a reset holds promotions back.
    f"added {TIERING}.base.SecondaryTierManager.tolerates_off_thread_polling",
    f"added {TIERING}.manager.TieringOffloadingManager.poll_tiers order",
    f"changed {TIERING}.manager.TieringOffloadingManager.reset_cache body",
    "added kv_offload.base.OffloadingManager.on_reset_flushed",
}
SGLANG_0510_0516 = {
    f"added {HICACHE}.HiCacheStorageConfig.attn_cp_rank",
    f"added {HICACHE}.HiCacheStorageConfig.attn_cp_size",
    f"added {HICACHE}.PoolName.SWA",
    f"added {HICACHE}.PoolTransfer.nodes_to_load",
    f"added {HICACHE}.PoolTransfer.indices_from_pool",
    f"changed {HICACHE}.HiCacheStorageExtraInfo.prefix_keys",
    "added mem_cache.utils.get_hash_str",
    "added mem_cache.unified_radix_cache",
    "added srt.plugins",
    "added mem_cache.registry",
    "added mem_cache.pool_host",
}
SGLANG_0516_0520 = {
    f"added {HICACHE}.PoolTransferResult.restorable_prefix_pages",
    f"added {HICACHE}.count_pool_hits",
    "added storage.backend_factory.register_backend('sim')",
    "added storage.backend_factory.register_backend('shm')",
    "added storage.backend_factory.register_backend('npu_memcache')",
}
SGLANG_0520_0523 = {
    f"added {HICACHE}.HiCacheStorageConfig.dp_rank",
    f"added {HICACHE}.HiCacheStorageConfig.dcp_size",
    f"added {HICACHE}.HiCacheStorageConfig.dcp_rank",
    f"added {HICACHE}.HiCacheStorageConfig.logical_page_size",
    f"added {HICACHE}.HiCacheStorage.on_host_pools_registered",
    f"added {HICACHE}.PoolHitPolicy.BLOCK_GROUPS",
    f"added {HICACHE}.HiCacheStorageFailureInjector",
    "added storage.backend_factory.register_backend('tensorcast')",
    "added storage.backend_factory.register_backend('seaweedfs')",
    "removed mem_cache.hiradix_cache",
    "added mem_cache.unified_cache.linker_factory",
    # Behaviour: sidecar calls get `extra_info`.
    "changed cache_controller.HiCacheController._page_transfer_kv_batch order",
    "changed HybridCacheController._page_transfer_sidecar order",
}
STEPS = {
    ("vllm", "0.24.0", "0.28.0"): VLLM_024_028,
    ("vllm", "0.28.0", "0.32.0"): VLLM_028_032,
    ("vllm", "0.32.0", "0.33.0"): VLLM_032_033,
    ("sglang", "0.5.10", "0.5.16"): SGLANG_0510_0516,
    ("sglang", "0.5.16", "0.5.20"): SGLANG_0516_0520,
    ("sglang", "0.5.20", "0.5.23"): SGLANG_0520_0523,
}
STABLE = {
    "vllm": {
        *(f"{BASE}.{name}" for name in ("__init__", "request_finished", "take_events")),
        *(f"{BASE}.{name}" for name in ("get_num_new_matched_tokens", "handle_preemptions")),
        *(f"{BASE}.{name}" for name in ("update_state_after_alloc", "on_new_request")),
        *(f"{BASE}.{name}" for name in ("build_connector_worker_meta", "reset_cache")),
        *(f"{BASE}.{name}" for name in ("has_pending_push_work", "get_finished_count")),
        f"{BASE}.build_prom_metrics",
        "config.kv_transfer.KVTransferConfig.kv_load_failure_policy",
        "kv_connector.factory.KVConnectorFactory.create_connector",
        "cpu_attn.CPUAttentionBackend.get_kv_cache_shape",
    },
    "sglang": {
        *(f"{HICACHE}.HiCacheStorage.{name}" for name in ("get", "set", "exists", "batch_exists")),
        *(f"{HICACHE}.HiCacheStorage.{name}" for name in ("batch_get", "batch_set")),
        *(f"{HICACHE}.HiCacheStorage.{name}" for name in ("batch_get_v1", "batch_set_v1")),
        *(f"{HICACHE}.HiCacheStorage.{name}" for name in ("batch_get_v2", "batch_set_v2")),
    },
}

STABLE_OFFLOADING = {
    f"{TIERING}.manager.TieringOffloadingManager.reset_cache order",
    f"{TIERING}.base.SecondaryTierManager.drain_jobs",
    f"{TIERING}.base.JobResult.successful_keys",
    "kv_offload.base.OffloadingSpec.__init__",
    *(f"kv_offload.base.LookupResult.{name}" for name in ("HIT", "MISS", "RETRY")),
}
"""Since 0.28."""


@functools.cache
def found(engine, before, after):
    """Return `kind path` of every change between two recorded versions."""
    libraries = (load(ENGINES[engine], version) for version in (before, after))
    return {f"{one.kind} {one.path}" for one in changes(ENGINES[engine], *libraries, {})}


def is_found(row, step):
    kind, _, suffix = row.partition(" ")
    return any(one.startswith(f"{kind} ") and one.endswith(f".{suffix}") for one in found(*step))


@pytest.mark.parametrize(
    ("step", "row"), [(step, row) for step, rows in STEPS.items() for row in sorted(rows)]
)
def test_a_known_change_is_found(step, row):
    assert is_found(row, step)


def reported(names, step):
    """Return those of `names` that the tool says have changed."""
    moved = {one.partition(" ")[2] for one in found(*step)}
    return {name for name in names for one in moved if one.endswith(f".{name}")}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_stable_is_not_reported(step):
    assert reported(STABLE[step[0]], step) == set()


@pytest.mark.parametrize("step", [("vllm", "0.28.0", "0.32.0"), ("vllm", "0.32.0", "0.33.0")])
def test_what_is_stable_of_vllms_offloading_is_not_reported(step):
    assert reported(STABLE_OFFLOADING, step) == set()


def test_a_change_of_the_other_direction_is_another_change():
    assert not is_found(f"added {BASE}.prefer_cross_layer_blocks", ("vllm", "0.28.0", "0.32.0"))


def test_a_change_that_we_depend_on_names_our_line():
    engine = ENGINES["vllm"]
    uses = {
        "vllm.v1.kv_cache_interface.KVCacheTensor.shared_by": {"ours.py:7"},
        "vllm.v1.core.Base.start_load_kv": {"ours.py:9"},
    }
    libraries = (load(engine, version) for version in ("0.28.0", "0.32.0"))
    places = {one.path.rpartition("v1.")[2]: one.place for one in changes(engine, *libraries, uses)}
    assert places["kv_cache_interface.KVCacheTensor.shared_by"] == "ours.py:7"
    mixin = "worker.kv_connector_model_runner_mixin.KVConnectorModelRunnerMixin"
    assert places[f"{mixin}._get_kv_connector_output order"] == "ours.py:9"
    assert places["kv_cache_interface.KVCacheTensor.layers"] == ""
