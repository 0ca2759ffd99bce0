"""What `flexkv` stands for: the session on a CPU, vLLM's own offloading on a GPU."""

import uuid

import pytest


@pytest.fixture
def config_with(identity, config_of):
    """Return a function from a device and our options to an engine's configuration."""

    def config_with(device="cuda", **options):
        config = identity.changed(config_of(), "device_config", device_type=device)
        return identity.changed(
            config,
            "kv_transfer_config",
            kv_connector_extra_config=options,
            engine_id=uuid.uuid4().hex,
        )

    return config_with


@pytest.fixture
def scheduler_of(identity, config_of, monkeypatch):
    """Return a function from a configuration to its scheduler's side, made as vLLM makes it."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from flexkv_connectors.vllm.offloading import connector

    monkeypatch.setattr(connector, "is_there", lambda _engine_id: True)
    made = []

    def scheduler_of(config, cache=None):
        cache = cache or identity.declared_cache(config_of())
        made.append(KVConnectorFactory.create_connector(config, KVConnectorRole.SCHEDULER, cache))
        return made[-1]

    yield scheduler_of
    for each in made:
        each.shutdown()


def is_offloaded(config):
    from flexkv_connectors.vllm.by_device import _is_offloaded

    return _is_offloaded(config)


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", {}, True),
        ("cuda", {"cpu_cache_gb": 1, "ssd_cache_gb": 1, "ssd_cache_dir": "/d"}, True),
        ("cuda", {"enable_gpu": ""}, True),
        ("cuda", {"enable_gpu": None}, True),
        ("cuda", {"enable_gpu": True}, False),
        ("cuda", {"enable_gpu": False}, False),
        ("cpu", {}, False),
        ("xpu", {}, False),
        ("cpu", {"spec_name": "AWayOfTheirOwn"}, True),
    ],
)
def test_a_gpu_is_offloaded_from_unless_something_is_said_of_the_sessions_way(
    config_with, device, options, expected
):
    assert is_offloaded(config_with(device, **options)) == expected


@pytest.mark.parametrize("value", ["true", "0"])
def test_it_may_be_said_in_the_environment(config_with, monkeypatch, value):
    monkeypatch.setenv("FLEXKV_ENABLE_GPU", value)
    assert not is_offloaded(config_with())


def test_a_version_below_which_it_never_ran_is_not_offloaded_from(config_with, monkeypatch):
    monkeypatch.setattr("vllm.__version_tuple__", (0, 33, 0))
    assert not is_offloaded(config_with())


def test_a_kind_of_cache_that_never_ran_is_only_tried_by_name(
    identity, config_of, config_with, scheduler_of, caplog
):
    latents = identity.declared_cache(config_of("mla"))
    assert type(scheduler_of(config_with(), latents)).__name__ == "IdleConnector"
    assert "offloading of MLAAttentionSpec" in caplog.text
    assert '"flexkv-offload" tries it' in caplog.text


def test_host_memory_that_is_smaller_than_a_block_is_not_tried(config_with, scheduler_of, caplog):
    assert type(scheduler_of(config_with(cpu_cache_gb=1e-6))).__name__ == "IdleConnector"
    assert "a block of this model takes" in caplog.text


def test_an_option_of_a_session_may_be_there_without_a_value(config_with, scheduler_of, caplog):
    scheduler_of(config_with(cpu_cache_gb=0.01, enable_gpu=None, copy_threads=""))
    assert "offload.on" in caplog.text


def test_without_caching_on_a_gpu_it_is_as_before(config_with, scheduler_of, caplog):
    scheduler_of(config_with(enable_gpu=False))
    assert "set enable_gpu to true to try it" in caplog.text


def test_on_a_gpu_the_log_says_who_does_what(config_with, scheduler_of, caplog):
    scheduler_of(config_with(cpu_cache_gb=0.01))
    assert caplog.text.count("offload.on: vLLM's own code moves KV") == 1


@pytest.mark.parametrize(("interval", "is_said"), [(0, True), (256, False), (None, False)])
def test_where_windows_share_no_prefixes_it_says_what_to_do(
    identity, config_with, scheduler_of, caplog, interval, is_said
):
    config = identity.changed(
        config_with(cpu_cache_gb=0.01), "cache_config", prefix_cache_retention_interval=interval
    )
    cache = identity.declared_cache(config)
    cache.kv_cache_groups.append(identity.window_group(config))
    scheduler_of(config, cache)
    assert ("--prefix-cache-retention-interval 256" in caplog.text) == is_said


@pytest.mark.parametrize(("device", "is_offloaded"), [("cpu", False), ("cuda", True)])
def test_kv_is_laid_out_as_who_moves_it_wants(config_with, device, is_offloaded):
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import (
        OffloadingConnector,
    )

    from flexkv_connectors.vllm.by_device import FlexKVByDevice

    config = config_with(device)
    wanted = OffloadingConnector.get_required_kvcache_layout(config) if is_offloaded else None
    assert FlexKVByDevice.get_required_kvcache_layout(config) == wanted


def test_counts_are_taken_in_as_they_were_sent():
    from flexkv_connectors.vllm.by_device import FlexKVByDevice
    from flexkv_connectors.vllm.offloading.stats import stats_of
    from flexkv_connectors.vllm.stats import FlexKVStats

    for sent in (FlexKVStats(data={"match_miss": 1.0}), stats_of({"match_miss": 1.0})):
        received = FlexKVByDevice.build_kv_connector_stats(sent.data)
        assert (type(received), received.data) == (type(sent), sent.data)
