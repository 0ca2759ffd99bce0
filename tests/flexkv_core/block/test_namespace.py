import msgspec
import pytest

from flexkv_core.block.namespace import Namespace, canonical_dtype, settings_digest
from flexkv_core.errors import ConfigError

NAMESPACE = Namespace(
    model="hub:org/model@0123456789abcdef0123456789abcdef01234567",
    weight_version="",
    weight_quantization="",
    kv_cache_dtype="bfloat16",
    kv_scales="",
    overrides="",
    num_layers=32,
    num_kv_heads=8,
    key_head_size=128,
    value_head_size=128,
    draft_model="",
    num_draft_layers=0,
    block_tokens=64,
    block_format="cells",
    block_format_version=1,
    cell_heads=8,
    cell_layers=32,
    user="",
)
FIELDS = msgspec.structs.fields(Namespace)


GOLDEN_DIGEST = "5dbdb738234a7dc3d5477fc8b95aa7def4e77138e046fe8d7b2ef1abeca52977"
"""Computed with json.dumps(sort_keys=True, separators=(",", ":")) and hashlib alone."""


def test_the_digest_is_the_golden_one():
    assert NAMESPACE.digest.hex() == GOLDEN_DIGEST


@pytest.mark.parametrize("field", FIELDS, ids=[field.name for field in FIELDS])
def test_every_field_is_part_of_the_identity(field):
    value = getattr(NAMESPACE, field.name)
    other = value + ("x" if field.type is str else 1)

    assert msgspec.structs.replace(NAMESPACE, **{field.name: other}).digest != NAMESPACE.digest


def test_a_field_appended_with_a_default_keeps_the_digests_there_are():
    class Later(Namespace, tag_field="schema_version", tag=1):
        new_field: str = "as it was"

    later = Later(**msgspec.structs.asdict(NAMESPACE))

    assert later.digest == NAMESPACE.digest
    assert msgspec.structs.replace(later, new_field="other").digest != NAMESPACE.digest


def test_another_schema_version_is_another_identity():
    class Changed(Namespace, tag_field="schema_version", tag=2):
        pass

    assert Changed(**msgspec.structs.asdict(NAMESPACE)).digest != NAMESPACE.digest


def test_no_field_can_be_forgotten_but_those_that_came_later():
    assert [field.name for field in FIELDS if not field.required] == ["cache_group"]


def test_a_block_of_kv_is_written_down_as_before_there_were_other_groups():
    assert b"cache_group" not in msgspec.json.encode(NAMESPACE)


def test_short_is_a_prefix_of_the_digest_and_fits_a_folder_name():
    assert NAMESPACE.short == NAMESPACE.digest.hex()[:16]


def test_a_namespace_survives_being_written_down():
    text = msgspec.json.encode(NAMESPACE)

    assert msgspec.json.decode(text, type=Namespace) == NAMESPACE
    assert b'"schema_version":1' in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.bfloat16", "bfloat16"),
        ("bf16", "bfloat16"),
        ("half", "float16"),
        ("torch.float16", "float16"),
        ("fp8", "fp8_e4m3"),
        ("torch.float8_e4m3fn", "fp8_e4m3"),
        ("FP8_E5M2", "fp8_e5m2"),
        ("torch.float8_e5m2", "fp8_e5m2"),
        ("torch.float8_e4m3fnuz", "float8_e4m3fnuz"),
        ("nvfp4", "nvfp4"),
    ],
)
def test_spellings_of_one_dtype_have_one_name(name, expected):
    assert canonical_dtype(name) == expected


@pytest.mark.parametrize("name", ["auto", "torch.uint8", ""])
def test_a_dtype_that_does_not_say_what_bytes_mean_is_refused(name):
    with pytest.raises(ConfigError, match="set the engine's --kv-cache-dtype"):
        canonical_dtype(name)


def test_settings_are_identified_whatever_their_order():
    one = {"rope": {"type": "yarn", "factor": 4.0}, "window": 4096}
    other = {"window": 4096, "rope": {"factor": 4.0, "type": "yarn"}}

    assert settings_digest(one) == settings_digest(other)
    assert settings_digest(one) != settings_digest({**one, "window": 4097})


def test_no_settings_have_the_empty_digest():
    assert settings_digest({}) == ""


def test_settings_without_a_json_form_are_refused():
    with pytest.raises(ConfigError, match="expected JSON values"):
        settings_digest({"rope": object()})


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "setting", [deep(100_000), "\ud800" * 1_000_000, 1 << 1_000_000], ids=["depth", "text", "int"]
)
def test_hostile_settings_are_refused_in_one_short_sentence(setting):
    with pytest.raises(ConfigError, match="expected JSON values") as caught:
        settings_digest({"rope": setting})

    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
