"""The identity of stored blocks: what changes KV changes it, and nothing else does.

Configurations are vLLM's own, made from its arguments for the tiny models; no engine is started.
"""

import dataclasses
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from environment import safe_environment

from flexkv_connectors.vllm.identity import why_no_ssd
from flexkv_core.errors import ConfigError
from flexkv_core.namespace import Namespace

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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
def rig():
    import identity_rig

    return identity_rig


@pytest.fixture(scope="module")
def config_of(rig, model):
    """Return a function from the name of a model and vLLM's options to a configuration."""

    @cache
    def plain(name):
        return rig.engine_config(model(name))

    def config_of(name="oracle", **options):
        return rig.engine_config(model(name), **options) if options else plain(name)

    return config_of


@pytest.fixture(scope="module")
def plain(rig, config_of):
    return rig.identify(config_of())


def differences(one, other):
    names = [field.name for field in msgspec.structs.fields(Namespace)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


def test_a_namespace_says_what_the_blocks_are(plain):
    assert plain.model.startswith("local:")
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


def test_mla_has_one_head_without_values_on_every_rank(rig, config_of):
    found = [rig.identify(rig.at_rank(config_of("mla"), rank, 4)) for rank in range(4)]

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
    "load-format": ({"load_format": "pt"}, {"overrides"}),
    "disable-sliding-window": ({"disable_sliding_window": True}, {"overrides"}),
    "code-revision": ({"code_revision": "v2"}, {"overrides"}),
}


@pytest.mark.parametrize(("options", "names"), CHANGES.values(), ids=CHANGES)
def test_an_option_that_changes_kv_changes_its_fields_and_no_other(
    rig, config_of, plain, options, names
):
    found = rig.identify(config_of(**options))

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
def test_an_option_that_changes_no_kv_changes_nothing(rig, config_of, plain, options):
    assert differences(plain, rig.identify(config_of(**options))) == set()


OURS = {
    "namespace": ("tenants", {"user"}),
    "weight_version": ("2026-11", {"weight_version"}),
    "block_tokens": (32, {"block_tokens"}),
    "max_tp": (2, {"cell_heads"}),
    "cpu_cache_gb": (1, set()),
    "eviction_policy": ("s3fifo", set()),
}


@pytest.mark.parametrize("option", OURS)
def test_an_option_of_ours_changes_its_field_or_nothing(rig, config_of, plain, option):
    value, names = OURS[option]

    assert differences(plain, rig.identify(config_of(), **{option: value})) == names


def test_two_ways_to_quantise_have_two_names(rig, config_of):
    arguments = [{"linear": "mxfp8"}, {"linear": "mxfp8", "ignore": ["lm_head"]}]
    names = [
        rig.identify(config_of(quantization="online", quantization_config=each)).weight_quantization
        for each in arguments
    ]

    assert names[0] != names[1]
    assert all(name.startswith("online:") for name in names)


def test_the_formats_of_eight_bits_have_two_names(rig, config_of):
    names = [
        rig.identify(config_of(kv_cache_dtype=option)).kv_cache_dtype
        for option in ("fp8", "fp8_e4m3", "fp8_e5m2")
    ]

    assert names == ["fp8_e4m3", "fp8_e4m3", "fp8_e5m2"]


def test_the_context_counts_where_rope_depends_on_it(rig, config_of):
    short, long = (
        rig.identify(config_of(hf_overrides=LONG_ROPE, max_model_len=length))
        for length in (256, 512)
    )

    assert differences(short, long) == {"overrides"}


def test_a_configuration_from_elsewhere_counts_by_its_content(
    rig, config_of, plain, model, tmp_path
):
    own, other = model("oracle"), tmp_path / "config.json"
    shutil.copy(own / "config.json", other)
    found = rig.identify(config_of(hf_config_path=str(tmp_path)))
    other.write_text(other.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    again = rig.identify(config_of(hf_config_path=str(tmp_path)))

    assert differences(plain, found) == differences(found, again) == {"overrides"}
    assert differences(plain, rig.identify(config_of(hf_config_path=str(own)))) == set()


def test_other_weights_under_the_same_path_are_another_model(rig, config_of, model, tmp_path):
    folder = shutil.copytree(model("oracle"), tmp_path / "model")
    config = rig.engine_config(folder)
    before = rig.identify(config)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    for position in range(len(content) // 2, len(content), 512):
        content[position] ^= 1
    weights.write_bytes(content)

    assert before == rig.identify(config_of())
    assert differences(before, rig.identify(config)) == {"model"}


def test_a_draft_model_counts_with_its_layers(rig, config_of, model, plain):
    draft = {"method": "draft_model", "model": str(model("oracle")), "num_speculative_tokens": 2}
    found = rig.identify(config_of(speculative_config=draft))

    assert differences(plain, found) == {"draft_model", "num_draft_layers", "overrides"}
    assert found.draft_model == plain.model
    assert found.num_draft_layers == 5


MEDIA = {
    "mm_processor_kwargs": {"max_pixels": 1000},
    "media_io_kwargs": {"image": {"rgba_background_color": [0, 0, 0]}},
    "video_pruning_rate": 0.5,
    "mm_encoder_attn_dtype": "fp8",
}


def with_media(rig, config, **settings):
    return rig.changed(config, "model_config", multimodal_config=SimpleNamespace(**settings))


@pytest.mark.parametrize("setting", MEDIA)
def test_what_changes_a_picture_but_not_its_hash_counts(rig, config_of, plain, setting):
    config = with_media(rig, config_of(), **{setting: MEDIA[setting]})

    assert differences(plain, rig.identify(config)) == {"overrides"}


def test_the_way_of_pruning_counts_only_where_something_is_pruned(rig, config_of, plain):
    found = [
        rig.identify(
            with_media(rig, config_of(), video_pruning_rate=rate, video_pruning_method=method)
        )
        for rate, method in ((None, "evs"), (0.5, "evs"), (0.5, "other"))
    ]

    assert found[0] == plain
    assert len({each.digest for each in found}) == 3


def test_overrides_that_cannot_be_compared_are_refused(rig, config_of):
    config = rig.changed(config_of(), "model_config", hf_overrides={"dtype": object()})

    with pytest.raises(ConfigError, match="expected JSON values"):
        rig.identify(config)


def test_ranks_and_scheduler_agree(rig, config_of):
    found = [
        rig.identify(rig.at_rank(config_of("demo"), rank, degree=2, num_stages=3))
        for rank in range(6)
    ]

    assert found == [found[0]] * 6
    assert (found[0].cell_heads, found[0].cell_layers) == (2, 3)


def test_degrees_up_to_max_tp_share_blocks(rig, config_of):
    shared = [
        rig.identify(rig.at_rank(config_of("demo"), 0, degree), max_tp=4) for degree in (1, 2, 4)
    ]
    alone = [rig.identify(rig.at_rank(config_of("demo"), 0, degree)) for degree in (1, 2, 4)]

    assert shared == [alone[2]] * 3
    assert len(set(alone)) == 3


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


def columns(rig, config, degree, num_stages=1, **options):
    """Return the columns of every rank."""
    return [
        rig.deployment_of(rig.at_rank(config, rank, degree, num_stages), **options).columns
        for rank in range(degree * num_stages)
    ]


def cells(column):
    return {
        (head, layer)
        for head in range(column.first_head, column.first_head + column.num_heads)
        for layer in range(column.first_layer, column.first_layer + column.num_layers)
    }


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("max_tp", [None, 4, 8])
def test_the_columns_of_an_engine_are_a_partition_of_the_model(
    rig, config_of, degree, num_stages, max_tp
):
    every = [
        column
        for rank in columns(rig, config_of("demo"), degree, num_stages, max_tp=max_tp)
        for column in rank
    ]
    covered = [cell for column in every for cell in cells(column)]

    assert sorted(covered) == [(head, layer) for head in range(4) for layer in range(8)]
    assert len({column.name for column in every}) == len(every)


def test_degrees_up_to_max_tp_have_the_same_columns_on_fewer_or_more_ranks(rig, config_of):
    one, two, four = (columns(rig, config_of("demo"), degree, max_tp=4) for degree in (1, 2, 4))

    assert [len(one), len(two), len(four)] == [1, 2, 4]
    assert one[0] == sum(two, ()) == sum(four, ())
    assert [column.first_head for column in one[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "degree", "num_columns"), [("demo", 8, 4), ("mla", 4, 1)])
def test_ranks_that_hold_the_same_kv_have_the_same_column(
    rig, config_of, name, degree, num_columns
):
    found = columns(rig, config_of(name), degree)
    replicas = degree // num_columns

    assert len(set(found)) == num_columns
    assert all(found[rank] == found[rank - rank % replicas] for rank in range(degree))


def test_draft_layers_lie_behind_the_model_in_the_last_stage(rig, config_of):
    config = rig.at_rank(config_of("demo"), 1, degree=1, num_stages=2)
    (column,) = rig.deployment_of(config, num_draft_layers=1).columns

    assert (column.first_layer, column.num_layers) == (4, 5)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_a_rank_has_a_cell_for_each_of_its_columns(rig, config_of, degree):
    deployment = rig.deployment_of(rig.at_rank(config_of("demo"), 0, degree), max_tp=8)

    assert len(deployment.columns) == deployment.block_format.num_cells == max(1, 4 // degree)
    assert deployment.columns[0].num_heads == deployment.block_format.cell_heads == 1


@pytest.mark.parametrize(
    ("degree", "max_tp", "sentence"),
    [
        (2, 1, "max_tp is 1, but this engine's tensor-parallel degree is 2: set max_tp to a"),
        (2, 3, "max_tp is 3, but this engine's tensor-parallel degree is 2: set max_tp to a"),
        (1, 3, "max_tp is 3, but 4 KV heads cannot be spread over so many ranks: set max_tp"),
        (2, 6, "max_tp is 6, but 4 KV heads cannot be spread over so many ranks: set max_tp"),
    ],
)
def test_a_max_tp_that_does_not_fit_is_refused(rig, config_of, degree, max_tp, sentence):
    config = rig.at_rank(config_of("demo"), 0, degree)

    with pytest.raises(ConfigError) as refusal:
        rig.deployment_of(config, max_tp=max_tp)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "degree", "num_stages", "quota_gb"),
    [("demo", 1, 1, 8), ("demo", 2, 2, 2), ("demo", 8, 1, 2), ("mla", 4, 1, 8)],
)
def test_owners_share_the_ssd_quota_of_their_engine(
    rig, config_of, name, degree, num_stages, quota_gb
):
    config = rig.at_rank(config_of(name), 0, degree, num_stages)
    deployment = rig.deployment_of(config, ssd_cache_gb=8, ssd_cache_dir="/nowhere")

    assert deployment.ssd_quota_bytes == quota_gb << 30


def test_without_an_ssd_tier_there_is_no_quota(rig, config_of):
    assert rig.deployment_of(config_of()).ssd_quota_bytes is None


@pytest.mark.parametrize("name", ["oracle", "mla", "demo"])
def test_models_on_this_machine_can_be_recognised(rig, config_of, name):
    assert rig.reason_of(config_of(name)) is None


WITHOUT_VERSION = {
    "dummy": "load_format=dummy does not say which weights: set weight_version",
    "tensorizer": "load_format=tensorizer does not say which weights: set weight_version",
    "of a plug-in": "load_format=of a plug-in does not say which weights: set weight_version",
}


@pytest.mark.parametrize("load_format", WITHOUT_VERSION)
def test_weights_that_nothing_tells_apart_need_a_version_of_the_user(rig, config_of, load_format):
    config = rig.changed(config_of(), "load_config", load_format=load_format)

    assert rig.reason_of(config) == WITHOUT_VERSION[load_format]
    assert rig.reason_of(config, weight_version="1") is None


def test_weights_in_an_object_store_need_a_version_of_the_user(rig, config_of):
    config = rig.changed(config_of(), "model_config", model_weights="s3://bucket/model")

    assert rig.reason_of(config) == (
        "the weights at s3://bucket/model have no version: set weight_version"
    )
    assert rig.reason_of(config, weight_version="1") is None


def hub_model(rig, config, folder, revision=None):
    """Return `config` for a model of the hub that was downloaded into `folder`."""
    config = rig.changed(config, "model_config", model="org/model", revision=revision)
    return rig.changed(config, "load_config", download_dir=str(folder))


def test_a_branch_of_the_hub_is_no_version(rig, config_of, tmp_path):
    config = hub_model(rig, config_of(), tmp_path)

    assert rig.reason_of(config) == (
        "the commit of org/model is not known: set --revision or weight_version"
    )
    assert rig.reason_of(config, weight_version="1") is None


def test_a_commit_of_the_hub_is_one(rig, config_of, tmp_path):
    config = hub_model(rig, config_of(), tmp_path, revision=COMMIT)

    assert rig.reason_of(config) is None
    assert rig.identify(config).model == f"hub:org/model@{COMMIT}"


def test_a_branch_is_resolved_where_vllm_has_downloaded_it_to(rig, config_of, tmp_path):
    reference = tmp_path / "models--org--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text(COMMIT)
    config = hub_model(rig, config_of(), tmp_path)

    assert rig.reason_of(config) is None
    assert rig.identify(config).model == f"hub:org/model@{COMMIT}"


PACKED = {
    "scales behind the values": {"state_content_bytes": 24},
    "K and V in places of their own": {"num_head_slots": 4, "state_content_bytes": 8},
    "as large as K and V by chance": {"num_head_slots": 4, "state_content_bytes": 16},
}


@pytest.mark.parametrize("packing", PACKED.values(), ids=PACKED)
def test_kv_in_an_order_of_vllms_own_is_not_kept(rig, config_of, packing):
    import kv_cache_rig

    spec = dataclasses.replace(kv_cache_rig.SPECS["fp8 as uint8"], **packing)
    found = why_no_ssd(config_of(), rig.cache_of(spec, end=5), rig.deployment_of(config_of()))

    assert found == "its quantised KV is packed in an order that only this vLLM knows"


@pytest.mark.parametrize("spec", ["bf16", "small values", "fp8", "fp8 as uint8", "padded pages"])
def test_plain_k_and_v_are_kept(rig, config_of, spec):
    import kv_cache_rig

    cache = rig.cache_of(kv_cache_rig.SPECS[spec], end=5)

    assert why_no_ssd(config_of(), cache, rig.deployment_of(config_of())) is None


def test_a_draft_model_in_code_is_not_kept(rig, config_of):
    drafter = {"method": "custom_class", "model": "module.Drafter", "num_speculative_tokens": 2}
    config = config_of(speculative_config=drafter)

    assert rig.reason_of(config) == "its draft model is code, which has no identity"


@pytest.mark.parametrize(
    ("cache_gb", "prefix_caching", "is_kept"),
    [(0, False, False), (4, False, True), (0, True, True)],
)
def test_pictures_that_vllm_numbers_are_not_kept(rig, config_of, cache_gb, prefix_caching, is_kept):
    config = config_of(enable_prefix_caching=prefix_caching)
    reason = rig.reason_of(with_media(rig, config, mm_processor_cache_gb=cache_gb))

    assert (reason is None) == is_kept
