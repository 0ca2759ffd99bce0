"""Whose blocks may outlive the engine: those of models and bytes that can be told apart later."""

import dataclasses
import shutil

import pytest

from flexkv_connectors.vllm.identity import why_no_ssd

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["oracle", "mla", "demo"])
def test_models_on_this_machine_can_be_recognised(identity, config_of, name):
    assert identity.reason_of(config_of(name)) is None


WITHOUT_VERSION = {
    "dummy": "load_format=dummy does not say which weights: set weight_version",
    "tensorizer": "load_format=tensorizer does not say which weights: set weight_version",
    "of a plug-in": "load_format=of a plug-in does not say which weights: set weight_version",
}


@pytest.mark.parametrize("load_format", WITHOUT_VERSION)
def test_weights_that_nothing_tells_apart_need_a_version_of_the_user(
    identity, config_of, load_format
):
    config = identity.changed(config_of(), "load_config", load_format=load_format)

    assert identity.reason_of(config) == WITHOUT_VERSION[load_format]
    assert identity.reason_of(config, weight_version="1") is None


def test_weights_in_an_object_store_need_a_version_of_the_user(identity, config_of):
    config = identity.changed(config_of(), "model_config", model_weights="s3://bucket/model")

    assert identity.reason_of(config) == (
        "the weights at s3://bucket/model have no version: set weight_version"
    )
    assert identity.reason_of(config, weight_version="1") is None


def hub_model(identity, config, folder, revision=None):
    """Return `config` for a model of the hub that was downloaded into `folder`."""
    config = identity.changed(config, "model_config", model="org/model", revision=revision)
    return identity.changed(config, "load_config", download_dir=str(folder))


def test_a_model_that_is_not_on_this_machine_needs_a_version_of_the_user(
    identity, config_of, tmp_path, caplog
):
    config = hub_model(identity, config_of(), tmp_path, revision=COMMIT)

    assert identity.identify(config) is None
    assert "set weight_version" in caplog.text
    assert identity.identify(config, weight_version="1").model.startswith("named:")


def test_a_branch_is_resolved_where_vllm_has_downloaded_it_to(
    identity, config_of, model, tmp_path, monkeypatch
):
    repository = tmp_path / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model("oracle"), repository / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = hub_model(identity, config_of(), tmp_path)

    assert identity.identify(config).model == identity.identify(config_of()).model


PACKED = {
    "scales behind the values": {"state_content_bytes": 24},
    "K and V in places of their own": {"num_head_slots": 4, "state_content_bytes": 8},
    "as large as K and V by chance": {"num_head_slots": 4, "state_content_bytes": 16},
}


@pytest.mark.parametrize("packing", PACKED.values(), ids=PACKED)
def test_kv_in_an_order_of_vllms_own_is_not_kept(identity, config_of, packing):
    import kv_cache_rig

    spec = dataclasses.replace(kv_cache_rig.SPECS["fp8 as uint8"], **packing)
    found = why_no_ssd(
        config_of(), identity.cache_of(spec, end=5), identity.deployment_of(config_of())
    )

    assert found == "its quantised KV is packed in an order that only this vLLM knows"


@pytest.mark.parametrize("spec", ["bf16", "small values", "fp8", "fp8 as uint8", "padded pages"])
def test_plain_k_and_v_are_kept(identity, config_of, spec):
    import kv_cache_rig

    cache = identity.cache_of(kv_cache_rig.SPECS[spec], end=5)

    assert why_no_ssd(config_of(), cache, identity.deployment_of(config_of())) is None


def test_a_draft_model_in_code_is_not_kept(identity, config_of):
    drafter = {"method": "custom_class", "model": "module.Drafter", "num_speculative_tokens": 2}
    config = config_of(speculative_config=drafter)

    assert identity.reason_of(config) == "its draft model is code, which has no identity"


@pytest.mark.parametrize(
    ("cache_gb", "prefix_caching", "is_kept"),
    [(0, False, False), (4, False, True), (0, True, True)],
)
def test_pictures_that_vllm_numbers_are_not_kept(
    identity, config_of, cache_gb, prefix_caching, is_kept
):
    config = config_of(enable_prefix_caching=prefix_caching)
    config = identity.with_media(config, mm_processor_cache_gb=cache_gb)
    reason = identity.reason_of(config, media_ids_are_hashes=True)

    assert (reason is None) == is_kept
    assert identity.reason_of(config) is None  # they stay in memory then
