"""The identity of stored blocks: what changes KV changes it, and nothing else does.

Configurations are vLLM's own, made from its arguments for the tiny models; no engine is started.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from environment import safe_environment

from flexkv_core.block.namespace import Namespace
from flexkv_core.errors import ConfigError

LONG_ROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
        "original_max_position_embeddings": 256,
    }
}


@pytest.fixture(scope="module")
def plain(identity, config_of):
    return identity.identify(config_of())


def differences(one, other):
    names = [field.name for field in msgspec.structs.fields(Namespace)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_a_namespace_says_what_the_blocks_are(plain):
    assert plain.model.startswith("content:")
    assert msgspec.structs.replace(plain, model="") == Namespace(
        model="",
        weight_version="",
        weight_quantization="",
        kv_cache_dtype="bfloat16",
        kv_scales="",
        overrides="",
        num_layers=5,
        num_kv_heads=2,
        key_head_size=64,
        value_head_size=64,
        draft_model="",
        num_draft_layers=0,
        block_tokens=64,
        block_format="cells",
        block_format_version=2,
        cell_heads=2,
        cell_layers=5,
        user="",
    )


def test_mla_has_one_head_without_values_on_every_rank(identity, config_of):
    found = [identity.identify(identity.at_rank(config_of("mla"), rank, 4)) for rank in range(4)]

    assert found[0].num_kv_heads == found[0].cell_heads == 1
    assert (found[0].key_head_size, found[0].value_head_size) == (576, 0)
    assert found == [found[0]] * 4


CHANGES = {
    "dtype": ({"dtype": "float32"}, {"kv_cache_dtype"}),
    "kv-cache-dtype": ({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype", "overrides"}),
    "compute in another dtype": (
        {"dtype": "float32", "kv_cache_dtype": "bfloat16"},
        {"overrides"},
    ),
    "quantization": ({"quantization": "fp8"}, {"weight_quantization"}),
    "quantization-config": (
        {"quantization": "online", "quantization_config": {"linear": "mxfp8"}},
        {"weight_quantization"},
    ),
    "hf-overrides": ({"hf_overrides": {"rope_theta": 5.0}}, {"overrides"}),
    "hf-overrides, nested": ({"hf_overrides": LONG_ROPE}, {"overrides"}),
    "model-impl": ({"model_impl": "transformers"}, {"overrides"}),
    "load-format": ({"load_format": "safetensors"}, {"overrides"}),
    "disable-sliding-window": ({"disable_sliding_window": True}, {"overrides"}),
    "code-revision": ({"code_revision": "v2"}, {"overrides"}),
}


@pytest.mark.parametrize(("options", "names"), CHANGES.values(), ids=CHANGES)
def test_an_option_that_changes_kv_changes_its_fields_and_no_other(
    identity, config_of, plain, options, names
):
    found = identity.identify(config_of(**options))

    assert differences(plain, found) == names
    assert found.digest != plain.digest


NEUTRAL = {
    "the dtype that auto means": {"kv_cache_dtype": "bfloat16"},
    "another spelling of it": {"dtype": "bfloat16"},
    "a shorter context": {"max_model_len": 256},
    "smaller pages": {"block_size": 32},
    "no prefix caching": {"enable_prefix_caching": False},
    "another seed": {"seed": 7},
    "eager mode": {"enforce_eager": True},
    "other batches": {"max_num_seqs": 3, "max_num_batched_tokens": 1024},
    "another name": {"served_model_name": "other"},
    "another default of sampling": {"generation_config": "vllm"},
    "trust in code that there is none of": {"trust_remote_code": True},
    "drafts without a model": {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 2,
            "prompt_lookup_max": 2,
        }
    },
}


@pytest.mark.parametrize("options", NEUTRAL.values(), ids=NEUTRAL)
def test_an_option_that_changes_no_kv_changes_nothing(identity, config_of, plain, options):
    assert differences(plain, identity.identify(config_of(**options))) == set()


def test_windows_of_which_all_tokens_are_kept_are_blocks_of_their_own(identity, config_of, plain):
    config = config_of()
    found = identity.identify_cache(config, identity.whole_windows(config))

    assert differences(plain, found) == {"cache_group"}


OURS = {
    "namespace": ("tenants", {"user"}),
    "weight_version": ("2026-11", {"weight_version"}),
    "block_tokens": (32, {"block_tokens"}),
    "max_tp": (2, {"cell_heads"}),
    "cpu_cache_gb": (1, set()),
    "eviction_policy": ("s3fifo", set()),
}


@pytest.mark.parametrize("option", OURS)
def test_an_option_of_ours_changes_its_field_or_nothing(identity, config_of, plain, option):
    value, names = OURS[option]

    assert differences(plain, identity.identify(config_of(), **{option: value})) == names


def test_two_ways_to_quantise_have_two_names(identity, config_of):
    arguments = [{"linear": "mxfp8"}, {"linear": "mxfp8", "ignore": ["lm_head"]}]
    names = [
        identity.identify(
            config_of(quantization="online", quantization_config=each)
        ).weight_quantization
        for each in arguments
    ]

    assert names[0] != names[1]
    assert all(name.startswith("online:") for name in names)


def test_the_formats_of_eight_bits_have_two_names(identity, config_of):
    names = [
        identity.identify(config_of(kv_cache_dtype=option)).kv_cache_dtype
        for option in ("fp8", "fp8_e4m3", "fp8_e5m2")
    ]

    assert names == ["fp8_e4m3", "fp8_e4m3", "fp8_e5m2"]


def test_the_context_counts_where_rope_depends_on_it(identity, config_of):
    short, long = (
        identity.identify(config_of(hf_overrides=LONG_ROPE, max_model_len=length))
        for length in (256, 512)
    )

    assert differences(short, long) == {"overrides"}


def test_a_configuration_from_elsewhere_counts_by_its_content(
    identity, config_of, plain, model, tmp_path
):
    own, other = model("oracle"), tmp_path / "config.json"
    shutil.copy(own / "config.json", other)
    found = identity.identify(config_of(hf_config_path=str(tmp_path)))
    other.write_text(other.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    again = identity.identify(config_of(hf_config_path=str(tmp_path)))

    assert differences(plain, found) == differences(found, again) == {"overrides"}
    assert differences(plain, identity.identify(config_of(hf_config_path=str(own)))) == set()


def test_one_other_weight_under_the_same_path_is_another_model(
    identity, config_of, model, tmp_path
):
    folder = shutil.copytree(model("oracle"), tmp_path / "model")
    config = identity.engine_config(folder)
    before = identity.identify(config)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        last = weights.read(1)[0]
        weights.seek(-1, 2)
        weights.write(bytes([last ^ 1]))

    assert before == identity.identify(config_of())
    assert differences(before, identity.identify(config)) == {"model"}


def test_a_draft_model_counts_with_its_layers(identity, config_of, model, plain):
    draft = {"method": "draft_model", "model": str(model("oracle")), "num_speculative_tokens": 2}
    found = identity.identify(config_of(speculative_config=draft))

    assert differences(plain, found) == {"draft_model", "num_draft_layers", "overrides"}
    assert found.draft_model == plain.model
    assert found.num_draft_layers == 5


MEDIA = {
    "mm_processor_kwargs": {"max_pixels": 1000},
    "media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}},
    "video_pruning_rate": 0.5,
    "mm_encoder_attn_dtype": "fp8",
}


@pytest.mark.parametrize("setting", MEDIA)
def test_what_changes_a_picture_but_not_its_hash_counts(identity, config_of, plain, setting):
    config = identity.with_media(config_of(), **{setting: MEDIA[setting]})

    assert differences(plain, identity.identify(config)) == {"overrides"}


def test_the_way_of_pruning_counts_only_where_something_is_pruned(identity, config_of, plain):
    found = [
        identity.identify(
            identity.with_media(config_of(), video_pruning_rate=rate, video_pruning_method=method)
        )
        for rate, method in ((None, "evs"), (0.5, "evs"), (0.5, "other"))
    ]

    assert found[0] == plain
    assert len({each.digest for each in found}) == 3


def test_overrides_that_cannot_be_compared_are_refused(identity, config_of):
    config = identity.changed(config_of(), "model_config", hf_overrides={"dtype": object()})

    with pytest.raises(ConfigError, match="expected JSON values"):
        identity.identify(config)


def test_ranks_and_scheduler_agree(identity, config_of):
    found = [
        identity.identify(identity.at_rank(config_of("demo"), rank, degree=2, num_stages=3))
        for rank in range(6)
    ]

    assert found == [found[0]] * 6
    assert (found[0].cell_heads, found[0].cell_layers) == (2, 3)


def test_degrees_up_to_max_tp_share_blocks(identity, config_of):
    shared = [
        identity.identify(identity.at_rank(config_of("demo"), 0, degree), max_tp=4)
        for degree in (1, 2, 4)
    ]
    alone = [
        identity.identify(identity.at_rank(config_of("demo"), 0, degree)) for degree in (1, 2, 4)
    ]

    assert shared == [alone[2]] * 3
    assert len(set(alone)) == 3


@pytest.mark.parametrize("trusts", [False, True])
def test_code_of_the_model_counts_where_vllm_may_run_it(identity, config_of, trusts):
    assert (
        identity.origin_of_blocks(config_of(trust_remote_code=trusts)).sources["model"].runs_code
        is trusts
    )


@pytest.mark.parametrize(
    ("backend", "knows_its_start"), [("mp", True), ("uni", True), (None, True), ("ray", False)]
)
def test_workers_that_ray_starts_do_not_know_when_the_engine_began(
    identity, config_of, backend, knows_its_start
):
    config = identity.changed(config_of(), "parallel_config", distributed_executor_backend=backend)
    assert (identity.origin_of_blocks(config).unseen_s == 0) is knows_its_start


def test_processes_with_other_hash_seeds_agree(plain, model):
    script = Path(__file__).with_name("identity_rig.py")
    digests = [
        subprocess.run(
            [sys.executable, script, model("oracle")],
            env=safe_environment() | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    ]

    assert digests == [plain.digest.hex()] * 2
