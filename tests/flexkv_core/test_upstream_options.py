import pytest

from flexkv_core.upstream_options import UPSTREAM_OPTIONS, is_on, why_not


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(
            (option, off)
            for option in ("enable_gds", "enable_mps", "enable_remote", "enable_p2p_cpu")
            for off in (False, 0, "0", "false", "False")
        ),
        ("enable_cpu", True),
        ("enable_cpu", "1"),
        ("enable_ssd", True),
        ("enable_ssd", False),
        ("max_file_size_gb", -1),
        ("max_file_size_gb", "-1"),
        ("server_launch_mode", "embedded"),
        ("instance_num", 1),
        ("instance_id", "0"),
        ("log_level", "WARNING"),
        ("logging_prefix", "FLEXKV"),
        ("redis_host", "127.0.0.1"),
        ("py_metrics_port", 8080),
        ("iouring_entries", 512),
        ("evict_ratio", 0.05),
        ("cpu_layout", "BLOCKFIRST"),
        ("master_ports", "5556,5557,5558"),
        ("hit_reward_seconds", 0),
        ("hugepage_size_bytes", 2097152),
        ("enable_flexkv", True),
        ("enable_layerwise_transfer", False),
    ],
)
def test_what_asks_for_nothing_else_than_is_here_is_accepted(option, value):
    assert why_not(option, value) is None


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("enable_ssd", "perhaps", "true or false"),
        ("enable_cpu", False, "in host memory always"),
        ("enable_gds", True, "between GPU and SSD"),
        ("enable_gds", 2, "between GPU and SSD"),
        ("enable_gds", [], "between GPU and SSD"),
        ("enable_nixl", "true", "between GPU and SSD"),
        ("enable_mps", 1, "MPS daemon"),
        ("enable_remote", True, "no remote tier"),
        ("use_mooncake_store_backend", 1, "no remote tier"),
        ("server_client_mode", 1, "no cache server"),
        ("server_launch_mode", "external", "no cache server"),
        ("instance_num", 2, "no cache server"),
        ("max_file_size_gb", 8, "up to ssd_cache_gb in all"),
        ("enable_metrics", True, "/metrics"),
        ("sync_get", 1, "set that to false"),
        ("enable_layerwise_transfer", True, "as a whole"),
        ("enable_nvcomp", "1", "compresses nothing"),
        ("hugepage_size_bytes", 1 << 30, "2 MiB"),
        ("hit_reward_seconds", 5, "s3fifo"),
        ("enable_flexkv", False, "the engine's own flag"),
        ("tokens_per_block", 64, "it is called block_tokens here"),
        ("kv_cache_dtype", "fp8", "the engine's --kv-cache-dtype"),
    ],
)
def test_what_asks_for_more_is_told_what_to_do(option, value, advice):
    reason = why_not(option, value)

    assert reason.startswith(f"is {value!r}, but ")
    assert advice in reason


def test_every_refusal_has_an_advice():
    for option, upstream in UPSTREAM_OPTIONS.items():
        assert upstream.advice or upstream.as_here is None, option


@pytest.mark.parametrize("value", [True, 1, "1", "true", "True"])
def test_a_switch_is_on_in_every_spelling(value):
    assert is_on(value)
    assert not is_on(not value)


def test_a_file_of_an_old_flexkv_is_told_what_to_set():
    assert "set cpu_cache_gb" in why_not("cache_config", {"num_cpu_blocks": 10240})
