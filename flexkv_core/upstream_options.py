"""Options of FlexKV that its users may still have set, and how each is treated here.

A value is accepted if FlexKV, so configured, does nothing that we do not do, and then has no
effect. Any other value is rejected in a sentence that says what to do.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from flexkv_core.excerpt import excerpt

__all__ = ["UPSTREAM_OPTIONS", "is_on", "why_not"]

_OFF = frozenset({"0", "false"})
_ON = frozenset({"1", "true"})


class _Upstream(NamedTuple):
    """The accepted values of one option, and the advice for all others."""

    as_here: Collection[str] | None
    """Accepted values, in lower case; None accepts any."""

    advice: str = ""


def _all(options: Iterable[str], upstream: _Upstream) -> Mapping[str, _Upstream]:
    return dict.fromkeys(options, upstream)


_NO_GDS = _Upstream(_OFF, "this version moves nothing between GPU and SSD directly: remove it")
_NO_REMOTE = _Upstream(
    _OFF, "this version has no remote tier and shares blocks with no other node: remove it"
)
_SERVER = "there is no cache server here, the cache lives in the engine's processes: remove it"
_SETTING_OF_WHAT_IS_OFF = _Upstream(None)
_NO_TRACE = _Upstream(_OFF, "this version traces nothing: remove it")
_LOGGING = _Upstream(None)
"""Ignored: the engine's own logging settings apply."""

_TUNING = _Upstream(None)
"""Ignored: how FlexKV's own copies, files, indexes and processes work, and not what is kept."""

UPSTREAM_OPTIONS: Mapping[str, _Upstream] = {
    "tokens_per_block": _Upstream((), "it is called block_tokens here: rename it"),
    "kv_cache_dtype": _Upstream(
        (), "the cache takes it from the engine: set the engine's --kv-cache-dtype"
    ),
    "use_hugepage_tmp_buffer": _Upstream(_OFF, "there is no such buffer here: remove it"),
    "enable_cpu": _Upstream(_ON, "blocks are kept in host memory always: remove it"),
    "enable_ssd": _Upstream(  # `parse_config` checks it against the other options
        _OFF | _ON, "it is true or false"
    ),
    "cache_config": _Upstream(
        (), "files of FlexKV before 1.0 are not read: set cpu_cache_gb in its place"
    ),
    "enable_flexkv": _Upstream(_ON, "the engine's own flag decides that: remove both"),
    "sync_get": _Upstream(_OFF, "it is called load_async here: set that to false instead"),
    "enable_layerwise_transfer": _Upstream(
        _OFF, "a prefix is loaded as a whole here, not layer by layer: remove it"
    ),
    "enable_nvcomp": _Upstream(_OFF, "this version compresses nothing: remove it"),
    "hugepage_size_bytes": _Upstream(
        {str(2 << 20)}, "huge pages are of 2 MiB here: remove it, and reserve such"
    ),
    "hit_reward_seconds": _Upstream(
        {"0"}, "a hit counts for s3fifo: set eviction_policy to that instead"
    ),
    "max_file_size_gb": _Upstream(
        {"-1"}, "files on SSD grow as they fill, up to ssd_cache_gb in all: remove it"
    ),
    **_all(("enable_gds", "enable_nixl"), _NO_GDS),
    **_all(("enable_remote", "enable_kv_sharing", "enable_3rd_remote"), _NO_REMOTE),
    **_all(("enable_p2p_cpu", "enable_p2p_ssd", "use_mooncake_store_backend"), _NO_REMOTE),
    **_all(
        ("mooncake_store_config_path", "redis_host", "redis_port", "redis_password"),
        _SETTING_OF_WHAT_IS_OFF,
    ),
    **_all(
        ("local_zmq_ip", "local_zmq_port", "local_ip", "node_ttl_seconds", "lease_ttl_ms"),
        _SETTING_OF_WHAT_IS_OFF,
    ),
    **_all(("renew_lease_ms", "safety_ttl_ms", "rebuild_interval_ms"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("nixl_backend_plugin", "nvcomp_batch_size"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("layerwise_eventfd_socket", "layerwise_wait_timeout_s"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("layerwise_notify_mode", "slru_protected_threshold"), _SETTING_OF_WHAT_IS_OFF),
    "server_client_mode": _Upstream(_OFF, _SERVER),
    "server_launch_mode": _Upstream({"embedded"}, _SERVER),
    "instance_num": _Upstream({"1"}, _SERVER),
    "instance_id": _Upstream({"0"}, _SERVER),
    "server_recv_port": _SETTING_OF_WHAT_IS_OFF,
    "enable_mps": _Upstream(
        _OFF, "this version starts no MPS daemon of NVIDIA's: start your own, or remove it"
    ),
    "enable_metrics": _Upstream(
        _OFF, "the engine's own /metrics endpoint shows the cache's metrics: remove it"
    ),
    **_all(("py_metrics_port", "cpp_metrics_port"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("log_level", "logging_prefix"), _LOGGING),
    **_all(("num_log_interval_requests", "eviction_log_interval_s"), _LOGGING),
    **_all(("enable_trace", "transfer_trace"), _NO_TRACE),
    **_all(("trace_file_path", "trace_max_file_size_mb"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("trace_max_files", "trace_flush_interval_ms"), _SETTING_OF_WHAT_IS_OFF),
    **_all(("use_ce_transfer_h2d", "use_ce_transfer_d2h"), _TUNING),
    **_all(("transfer_num_cta_h2d", "transfer_num_cta_d2h"), _TUNING),
    **_all(("transfer_sms_h2d", "transfer_sms_d2h"), _TUNING),
    **_all(("ce_segment_threshold", "ce_path_opt", "enable_ce_memcpy2d"), _TUNING),
    **_all(("ce_gather_threads", "ce_gather_nt", "cudahost_chunk_size_gb"), _TUNING),
    **_all(("ssd_io_opt", "iouring_entries", "iouring_flags", "hugetlbfs_dir"), _TUNING),
    **_all(("cpu_layout", "ssd_layout", "remote_layout", "gds_layout"), _TUNING),
    **_all(("cpu_layout_type", "ssd_layout_type"), _TUNING),
    **_all(("remote_layout_type", "gds_layout_type"), _TUNING),
    **_all(("index_accel", "evict_ratio", "evict_start_threshold"), _TUNING),
    **_all(("enable_collective_sync", "kv_shared_across_ranks_mode"), _TUNING),
    **_all(("master_host", "master_ports"), _TUNING),
    **_all(("trt_subprocess_host", "trt_subprocess_ports", "vmm_fd_sock_dir"), _TUNING),
    **_all(("worker_shutdown_timeout_s", "transfer_manager_shutdown_timeout_s"), _TUNING),
}


def why_not(option: str, value: object) -> str | None:
    """Return why an option of `UPSTREAM_OPTIONS` cannot be `value`; None if it can."""
    as_here, advice = UPSTREAM_OPTIONS[option]
    if as_here is None or _written(value) in as_here:
        return None
    return f"is {excerpt(value)}, but {advice}"


def is_on(switch: object) -> bool:
    """Return whether an accepted value of a switch is true."""
    return _written(switch) in _ON


def _written(value: object) -> str:
    """Return a value as a file would write it; anything but a scalar matches no accepted value."""
    return excerpt(value).strip("'").lower()
