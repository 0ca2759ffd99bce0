"""Which engines are served without caching, and what they say; which of them have draft layers."""

import dataclasses

import pytest

from flexkv_connectors.vllm.deployment import draft_of, why_not
from flexkv_connectors.vllm.support import why_not_reuse
from flexkv_core.config import parse_config


@pytest.fixture
def reason(identity):
    """Return a function from a configuration to the reason; its layers may be given."""

    def reason_of(config, cache=None):
        return why_not(config, cache or identity.declared_cache(config), parse_config({}))

    return reason_of


@pytest.fixture
def pooling_config(config_of):
    def pooling_config(**pooler):
        return config_of(runner="pooling", convert="embed", pooler_config=pooler)

    return pooling_config


def test_a_model_that_generates_is_cached(reason, config_of):
    assert reason(config_of()) is None


def test_it_is_cached_where_vllm_is_told_to_have_no_prefix_cache_of_its_own(reason, config_of):
    assert reason(config_of(enable_prefix_caching=False)) is None


def test_pooling_from_the_last_token_is_cached(reason, pooling_config):
    assert reason(pooling_config(seq_pooling_type="LAST")) is None


@pytest.mark.parametrize("kind", ["MEAN", "CLS"])
@pytest.mark.parametrize("is_forced", [False, True])
def test_pooling_that_reads_other_tokens_is_not_whatever_vllm_is_told(
    reason, config_of, kind, is_forced
):
    config = config_of(
        runner="pooling",
        convert="embed",
        pooler_config={"seq_pooling_type": kind},
        enable_prefix_caching=is_forced or None,
    )
    assert reason(config) == f"its {kind} pooling reads more than the last token"


def test_pooling_of_steps_is_not(reason, pooling_config):
    config = pooling_config(tok_pooling_type="STEP")
    assert reason(config) == "its STEP pooling reads more than the last token"


def test_attention_that_looks_ahead_is_not(reason, pooling_config):
    config = pooling_config(seq_pooling_type="LAST")
    config.model_config.hf_config.is_causal = False

    assert reason(config) == "vLLM cannot continue a prompt of this model"


def test_layers_that_look_ahead_are_not(reason, identity, config_of):
    [group] = identity.declared_cache(config_of()).kv_cache_groups
    spec = dataclasses.replace(group.kv_cache_spec, non_causal=True)

    assert reason(config_of(), identity.cache_of(spec, end=5)) == (
        "in its attention, tokens see those after them"
    )


def test_windows_are_cached_where_all_tokens_are_kept(reason, identity, config_of):
    assert reason(config_of(), identity.whole_windows(config_of())) is None


def test_where_only_windows_are_kept_it_says_what_to_do(reason, identity, config_of):
    cache = identity.declared_cache(config_of())
    cache.kv_cache_groups.append(identity.window_group(config_of()))

    assert reason(config_of(), cache) == (
        "the model mixes 2 cache groups (FullAttentionSpec, SlidingWindowSpec): with "
        "--disable-hybrid-kv-cache-manager, layers with windows keep all tokens too"
    )


def test_routed_experts_are_of_all_tokens(reason, identity, config_of):
    config = config_of()
    part = "aux_output_config" if hasattr(config, "aux_output_config") else "model_config"
    changed = identity.changed(config, part, enable_return_routed_experts=True)

    assert reason(changed).startswith("skipped tokens have no routed experts")


def test_batch_invariance_is_not_promised_behind_what_others_have_computed(
    reason, config_of, monkeypatch
):
    config = config_of()
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")

    assert reason(config).startswith("results would depend on what was cached")


def test_diffusion_is_not_cached(reason, identity, config_of):
    config = identity.changed(config_of(), "model_config", is_diffusion=True)

    assert reason(config) == "it is a diffusion model, and tokens see those after them"


@pytest.mark.parametrize(("device", "is_cached"), [("cpu", False), ("cuda", True)])
def test_latents_are_cached_where_vllm_can_continue_from_them(
    identity, config_of, device, is_cached
):
    """Its kernels for a CPU without AMX cannot: it has no prefix cache there, whoever asks."""
    config = config_of("mla", enable_prefix_caching=True)
    if config.cache_config.enable_prefix_caching:
        pytest.skip("this CPU has AMX")
    elsewhere = identity.changed(config, "device_config", device_type=device)

    assert (why_not_reuse(elsewhere) is None) == is_cached


METHODS = {
    "ngram": False,
    "ngram_gpu": False,
    "suffix": False,
    "medusa": False,
    "mlp_speculator": False,
    "draft_model": True,
    "eagle": True,
    "eagle3": True,
    "mtp": True,
    "dflash": True,
    "dspark": True,
    "custom_class": True,
}


@pytest.mark.parametrize("method", METHODS)
def test_draft_layers_are_those_of_methods_that_have_some(identity, config_of, method):
    ngram = config_of(speculative_config={"method": "ngram", "num_speculative_tokens": 2})
    assert ngram.speculative_config.draft_model_config is not None
    config = identity.changed(ngram, "speculative_config", method=method)

    assert (draft_of(config) is not None) == METHODS[method]
    assert identity.deployment_of(config).draft_blocks == METHODS[method]


def test_no_speculation_is_no_draft_layer(identity, config_of):
    assert draft_of(config_of()) is None
    assert identity.deployment_of(config_of()).draft_blocks == 0


@pytest.fixture
def drafted(config_of, model):
    def drafted(name):
        draft = {"method": "draft_model", "model": str(model(name)), "num_speculative_tokens": 2}
        return config_of(speculative_config=draft)

    return drafted


def mixed_cache(identity, config):
    """Return the layers of a model, and one of another shape beside them, as vLLM groups them."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    [group] = identity.declared_cache(config).kv_cache_groups
    spec = group.kv_cache_spec
    other = dataclasses.replace(spec, num_kv_heads=1)
    together = UniformTypeKVCacheSpecs.from_specs({"one": spec, "other": other})
    assert together is not None
    return identity.cache_of(together, end=5)


def test_a_draft_model_of_another_shape_is_named_with_what_to_do(reason, identity, drafted):
    config = drafted("narrow")

    assert reason(config, mixed_cache(identity, config)) == (
        "its draft model keeps K and V of 1 x 64 a token and layer where the model keeps "
        "K and V of 2 x 64: choose a draft model that keeps the same, or none"
    )


def test_layers_of_several_shapes_are_not_blamed_on_a_draft_model_of_the_same(
    reason, identity, drafted
):
    config = drafted("oracle")

    assert reason(config) is None
    assert reason(config, mixed_cache(identity, config)) == (
        "its layers keep KV of different shapes"
    )
