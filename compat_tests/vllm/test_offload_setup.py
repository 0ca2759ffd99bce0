"""Options and refusals of FlexKV below vLLM's own offloading, on vLLM's real configurations."""

import dataclasses

import pytest
from engine_process import Ask, EngineProcess, random_tokens
from offload_engines import connector_on

from flexkv_core.errors import ConfigError

GIB = 2**30
PAGE_TOKENS = 32


@pytest.fixture
def engine_of(offload, identity, config_of):
    """Return a function from our options to an engine that is described and never started."""

    def engine_of(num_engines=1, **options):
        config = identity.changed(
            config_of(), "kv_transfer_config", kv_connector_extra_config=options
        )
        config = identity.changed(config, "parallel_config", data_parallel_size_local=num_engines)
        cache = offload.read_options(config)
        return offload.OffloadingEngine(config, identity.declared_cache(config), cache)

    return engine_of


@pytest.fixture
def extra_of(offload, engine_of):
    """Return a function from our options to vLLM's."""

    def extra_of(*, uses_ssd=False, num_engines=1, **options):
        config = offload.translated(engine_of(num_engines, **options), uses_ssd=uses_ssd)
        return config.kv_transfer_config.kv_connector_extra_config

    return extra_of


def test_host_memory_is_vllms(extra_of):
    assert extra_of(cpu_cache_gb=2)["cpu_bytes_to_use"] == 2 * GIB


def test_each_engine_of_a_node_has_what_is_asked_for_and_else_its_part(extra_of):
    assert extra_of(num_engines=2, cpu_cache_gb=2)["cpu_bytes_to_use"] == 2 * GIB
    assert extra_of(num_engines=2)["cpu_bytes_to_use"] == extra_of()["cpu_bytes_to_use"] // 2


def test_answers_are_kept_too(extra_of):
    assert extra_of(cpu_cache_gb=2)["offload_prompt_only"] is False


def test_a_block_is_a_page_unless_it_is_said_to_be_several(extra_of):
    assert extra_of(cpu_cache_gb=1)["blocks_per_chunk"] == 1
    assert extra_of(cpu_cache_gb=1, block_tokens=4 * PAGE_TOKENS)["blocks_per_chunk"] == 4


def test_a_block_that_is_not_whole_pages_is_refused(extra_of):
    with pytest.raises(ConfigError, match="a multiple of 32"):
        extra_of(cpu_cache_gb=1, block_tokens=48)


@pytest.mark.parametrize("option", ["min_load_tokens", "load_async", "enable_gpu", "copy_threads"])
def test_options_of_a_session_are_refused(engine_of, option):
    with pytest.raises(ConfigError, match=f"{option} means nothing here"):
        engine_of(**{option: 1})


def test_a_publisher_of_ours_beside_that_of_vllm_is_refused(engine_of):
    with pytest.raises(ConfigError, match="set vLLM's --kv-events-config"):
        engine_of(events={"endpoint": "tcp://*:5557"})


def test_an_unknown_option_is_refused(engine_of):
    with pytest.raises(ConfigError, match="did you mean ssd_cache_gb"):
        engine_of(ssd_cache_gbs=1)


def test_the_tier_is_named_where_there_is_one_and_its_configuration_is_a_copy(extra_of, engine_of):
    assert extra_of(cpu_cache_gb=1)["secondary_tiers"] == []
    options = {"cpu_cache_gb": 1, "ssd_cache_gb": 1, "ssd_cache_dir": "/cache"}
    (tier,) = extra_of(uses_ssd=True, **options)["secondary_tiers"]
    assert tier["type"] == "FlexKVTier"
    engine = engine_of(**options)
    assert engine.vllm_config.kv_transfer_config.kv_connector_extra_config == options


def test_below_vllms_own_connector_the_tier_stops_the_start(offload, engine_of, caplog):
    """There it would hear neither of adapters and media, nor of what a reset leaves."""
    engine = engine_of(cpu_cache_gb=0.01, ssd_cache_gb=1, ssd_cache_dir="/cache")
    with pytest.raises(ConfigError, match='"kv_connector": "flexkv-offload"'):
        offload.manager_below_vllms_own(engine, weight_version="one", ssd_cache_gb=1)
    (refusal,) = [record.message for record in caplog.records if "refused" in record.message]
    assert "\n" not in refusal


def test_a_larger_degree_asks_for_rows_that_are_the_same_at_each(extra_of):
    assert extra_of(cpu_cache_gb=1, max_tp=2)["canonical_layout"] is True
    assert "canonical_layout" not in extra_of(cpu_cache_gb=1)


@pytest.fixture
def reason_of(offload, identity, config_of):
    """Return a function from what is different about an engine to why it is not served."""

    def reason_of(part="model_config", *, moves_on_cpu=True, **values):
        config = identity.changed(config_of(), part, **values)
        cache = identity.declared_cache(config_of())
        return offload.why_not(config, cache, moves_on_cpu=moves_on_cpu)

    return reason_of


def test_a_usual_engine_is_served(reason_of):
    assert reason_of() is None


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("parallel_config", {"nnodes": 2}, "2 nodes"),
        ("parallel_config", {"world_size": 2, "distributed_executor_backend": "ray"}, "by ray"),
        ("parallel_config", {"world_size": 2, "pipeline_parallel_size": 2}, "pipeline"),
        ("parallel_config", {"decode_context_parallel_size": 2}, "decode context"),
        ("cache_config", {"calculate_kv_scales": True}, "scales"),
        ("model_config", {"hf_overrides": print}, "function"),
    ],
)
def test_what_was_never_shown_to_work_is_served_without_caching(reason_of, part, values, words):
    assert words in reason_of(part, **values)


@pytest.mark.parametrize(("version", "is_served"), [((0, 31, 0), False), ((0, 32, 0), True)])
def test_several_ranks_are_served_since_each_has_its_own_place(
    reason_of, monkeypatch, version, is_served
):
    import vllm

    monkeypatch.setattr(vllm, "__version_tuple__", version)
    ranks = {"world_size": 2, "distributed_executor_backend": "mp"}
    reason = reason_of("parallel_config", **ranks)
    assert reason is None if is_served else "upgrade vLLM" in reason


def test_vllm_does_not_offload_from_a_cpu(reason_of):
    assert "flexkv-session" in reason_of(moves_on_cpu=False)


@pytest.fixture
def cache_beside(identity, config_of):
    """Return a function from a layer's spec to a cache where others are beside it in one group."""

    def cache_beside(change):
        from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

        (group,) = identity.declared_cache(config_of()).kv_cache_groups
        specs = {"one": group.kv_cache_spec, "other": change(group.kv_cache_spec)}
        return identity.cache_of(UniformTypeKVCacheSpecs(group.kv_cache_spec.block_size, specs), 2)

    return cache_beside


def narrower(spec):
    """Return a spec of another shape."""
    return dataclasses.replace(spec, num_kv_heads=1)


def with_sinks(spec):
    """Return a spec of a kind that was never restored."""
    from vllm.v1.kv_cache_interface import SinkFullAttentionSpec

    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return SinkFullAttentionSpec(**values)


def test_layers_of_different_shapes_are_served_if_each_is_of_a_known_kind(
    offload, config_of, cache_beside
):
    assert offload.why_not(config_of(), cache_beside(narrower), moves_on_cpu=True) is None
    assert "Sink" in offload.why_not(config_of(), cache_beside(with_sinks), moves_on_cpu=True)


def test_rows_of_different_shapes_are_not_asked_to_be_the_same_at_each_degree(
    offload, engine_of, cache_beside
):
    """The scheduler would, which sees one shape: rows of each degree would have the same name."""
    engine = engine_of(cpu_cache_gb=1, max_tp=2)
    engine.kv_cache_config = cache_beside(narrower)
    with pytest.raises(ConfigError, match="leave max_tp out"):
        offload.translated(engine, uses_ssd=False)


def test_a_cache_of_an_unknown_kind_is_not_served(offload, identity, config_of):
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec

    (group,) = identity.declared_cache(config_of()).kv_cache_groups
    known = group.kv_cache_spec
    spec = ChunkedLocalAttentionSpec(
        block_size=known.block_size,
        num_kv_heads=known.num_kv_heads,
        head_size=known.head_size,
        dtype=known.dtype,
        attention_chunk_size=64,
    )
    cache = identity.cache_of(spec, 5)
    assert "ChunkedLocal" in offload.why_not(config_of(), cache, moves_on_cpu=True)


def test_prompts_under_a_weak_hash_do_not_outlive_the_process(offload, identity, config_of):
    weak = identity.changed(config_of(), "cache_config", prefix_caching_hash_algo="xxhash")
    cache = offload.parse_config({})
    assert "sha256" in offload.why_no_ssd(weak, cache)


@pytest.mark.parametrize(("says_order", "is_kept"), [(False, False), (True, True)])
def test_where_vllm_does_not_say_how_kv_lies_in_rows_they_do_not_outlive_the_process(
    offload, config_of, monkeypatch, says_order, is_kept
):
    """So is 0.28, and no later one."""
    from flexkv_connectors.vllm.offloading import drift

    monkeypatch.setattr(drift, "_SAYS_ORDER", says_order)
    reason = offload.why_no_ssd(config_of(), offload.parse_config({}))
    assert reason is None if is_kept else "upgrade vLLM" in reason


def test_where_it_cannot_be_used_the_engine_serves_without_it(model, tmp_path):
    connector = connector_on(tmp_path / "ssd") | {"kv_connector": "flexkv-offload"}
    del connector["kv_connector_module_path"]
    for name in ("spec_name", "spec_module_path"):
        del connector["kv_connector_extra_config"][name]
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = EngineProcess(model("oracle"), folder, connector)
    (served,) = engine.complete(Ask(prompt=random_tokens(1, 300)))
    engine.close()
    assert len(served.tokens) == 24
    assert (
        "connector.off: serving without KV caching, because vLLM offloads" in engine.log.read_text()
    )
