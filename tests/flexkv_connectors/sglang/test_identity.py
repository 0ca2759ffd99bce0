"""The namespace of an engine's blocks: what is in it, and that it is vLLM's for the same model."""

import json
import time

import msgspec
import pytest
from engine_values import deployment, keys_and_values, settings

from flexkv_connectors.sglang.identity import origin_of, why_no_identity
from flexkv_core.block.namespace import Namespace
from flexkv_core.identity import origin

DIGEST = "03ec3bc13a9a32de5380a3c1fcb661c215ed085e1f019dbea34705a1d8a681f5"
"""Of the model below: with another one, what is on disk would miss, and vLLM's blocks as well."""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"abcd"
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def find(monkeypatch):
    """Return a function from an engine and a rank of it to a namespace, None if there is none."""
    monkeypatch.setattr(origin, "engine_start_s", time.time)

    def find(engine, deployed):
        found = []
        origin_of(engine, deployed).find(deployed.rank.cache, found.append).join()
        return found[0] if found else None

    return find


@pytest.fixture
def identify(model, find):
    """Return a function from settings and options to a namespace."""

    def identify(options=None, **changes):
        engine = settings(**{"model": str(model)} | changes)
        return find(engine, deployment(options=options, engine=engine))

    return identify


def differences(one, other):
    names = [field.name for field in msgspec.structs.fields(Namespace)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_a_namespace_is_the_one_that_vllm_has_for_the_same_model(identify):
    found = identify()
    assert found.model.startswith("content:")
    # Fields and values as in compat_tests/vllm/test_identity.py, for a model of another size.
    assert msgspec.structs.replace(found, model="") == Namespace(
        model="",
        weight_version="",
        weight_quantization="",
        kv_cache_dtype="float16",
        kv_scales="",
        overrides="",
        num_layers=6,
        num_kv_heads=4,
        key_head_size=32,
        value_head_size=32,
        draft_model="",
        num_draft_layers=0,
        block_tokens=16,
        block_format="cells",
        block_format_version=2,
        cell_heads=4,
        cell_layers=6,
        user="",
    )
    assert found.digest.hex() == DIGEST


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"quantization": "awq"}, {"weight_quantization"}),
        ({"dtype": "torch.bfloat16"}, {"overrides"}),
        ({"implementation": "transformers"}, {"overrides"}),
        ({"overrides": {"rope_theta": 1}}, {"overrides"}),
        ({"speculative_algorithm": "NGRAM"}, {"overrides"}),
        ({"context_length": 8192, "rope": "longrope"}, {"overrides"}),
    ],
)
def test_a_setting_that_changes_kv_changes_its_field_and_no_other(identify, changes, fields):
    assert differences(identify(), identify(**changes)) == fields


@pytest.mark.parametrize("changes", [{"context_length": 8192}, {"implementation": "sglang"}])
def test_a_setting_that_changes_no_kv_changes_nothing(identify, changes):
    assert identify(**changes) == identify()


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ({"namespace": "tenant"}, {"user"}),
        ({"weight_version": "2"}, {"weight_version"}),
        ({"max_tp": 2}, {"cell_heads"}),
        ({"ssd_cache_gb": 2}, set()),
    ],
)
def test_an_option_of_ours_changes_its_field_or_nothing(identify, option, fields):
    assert differences(identify(), identify(option)) == fields


def test_other_weights_in_the_same_folder_are_another_model(identify, model):
    before = identify()
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"e")
    assert differences(before, identify()) == {"model"}


def test_ranks_of_all_degrees_up_to_max_tp_agree(identify, model, find):
    engine = settings(model=str(model))
    ranks = [
        find(
            engine,
            deployment(keys_and_values(2), {"max_tp": 2}, engine, tp_rank=rank, tp_size=2),
        )
        for rank in (0, 1)
    ]
    assert {rank.digest for rank in ranks} == {identify({"max_tp": 2}).digest}


def test_fixed_scales_count_by_their_content(identify, tmp_path):
    scales = tmp_path / "scales.json"
    scales.write_text("1")
    before = identify(kv_scales_path=str(scales))
    scales.write_text("2")
    assert differences(before, identify(kv_scales_path=str(scales))) == {"kv_scales"}
    assert identify(kv_scales_path=str(tmp_path / "none")) is None


def test_an_adapter_of_the_drafter_counts_by_its_content(identify, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"one")
    before = identify(draft_adapter=str(folder))
    assert differences(identify(), before) == {"overrides"}
    (folder / "adapter_model.safetensors").write_bytes(b"two")
    assert differences(before, identify(draft_adapter=str(folder))) == {"overrides"}


def test_adapters_that_keys_tell_apart_leave_the_model_alone(identify):
    assert identify(adapters={"a": "/no/adapter"}) == identify()


def test_with_a_drafters_adapter_that_cannot_be_read_nothing_is_kept(identify, caplog):
    assert identify(draft_adapter="/no/adapter") is None
    assert "/no/adapter are not on this machine" in caplog.text


def test_weights_that_nothing_tells_apart_need_a_version(model):
    dummy = settings(model=str(model), load_format="dummy")
    assert "set weight_version" in why_no_identity(dummy, "")
    assert why_no_identity(dummy, "1") is None
    assert why_no_identity(settings(model=str(model)), "") is None


def test_a_model_that_is_not_there_needs_a_version(identify, tmp_path, caplog):
    elsewhere = {"model": "owner/name", "hub_cache": str(tmp_path)}
    assert identify(**elsewhere) is None
    assert "set weight_version" in caplog.text
    assert identify({"weight_version": "1"}, **elsewhere).model.startswith("named:")


@pytest.mark.parametrize("trusts", [False, True])
def test_code_of_the_model_counts_where_sglang_may_run_it(trusts):
    engine = settings(runs_code=trusts)
    assert origin_of(engine, deployment(engine=engine)).sources["model"].runs_code is trusts
