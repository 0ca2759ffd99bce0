import contextlib
import math
import time
import traceback
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flexkv_core import config
from flexkv_core.config import CacheConfig, check_option, parse_config
from flexkv_core.errors import ConfigError
from flexkv_core.upstream_options import UPSTREAM_OPTIONS

any_letter = st.characters()  # lone surrogates, too: JSON has them
OPTIONS = [field.name for field in msgspec.structs.fields(CacheConfig)]


def error_of(*layers):
    with pytest.raises(ConfigError) as caught:
        parse_config(*layers)
    return str(caught.value)


@contextlib.contextmanager
def refusals():
    """Collect what `ConfigError`s say."""
    messages = []
    try:
        yield messages
    except ConfigError as error:
        messages.append(str(error))


def test_nothing_set_gives_the_defaults():
    assert parse_config() == CacheConfig()
    assert parse_config({}, {}) == CacheConfig()


def test_a_later_layer_wins_option_by_option():
    parsed = parse_config(
        {"cpu_cache_gb": 1, "block_tokens": 16, "eviction_policy": "s3fifo"},
        {"cpu_cache_gb": "2.5", "block_tokens": "32"},
        {"cpu_cache_gb": 3},
    )

    assert parsed == CacheConfig(cpu_cache_gb=3.0, block_tokens=32, eviction_policy="s3fifo")


def test_a_later_layer_can_give_an_option_back_to_its_default():
    assert parse_config({"cpu_cache_gb": 16}, {"cpu_cache_gb": None}).cpu_cache_gb is None


def test_the_layers_stay_as_they_were():
    layer = {"block_tokens": "16"}
    parse_config(layer, {"block_tokens": 32})

    assert layer == {"block_tokens": "16"}


def test_every_option_says_what_it_expects():
    assert list(config._EXPECTED) == OPTIONS


def test_no_option_of_ours_is_taken_for_one_of_flexkv():
    assert set(OPTIONS).isdisjoint(UPSTREAM_OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_of_the_wrong_type_is_one_sentence_with_the_option(option):
    message = error_of({option: {"a": "mapping"}})

    assert message == f"{option} is {{'a': 'mapping'}}: expected {config._EXPECTED[option]}"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("written", "option", "value"),
    [
        ("0.5", "cpu_cache_gb", 0.5),
        ("16", "cpu_cache_gb", 16.0),
        ("64", "block_tokens", 64),
        ("true", "load_async", True),
        ("False", "load_async", False),
        ("1", "use_hugepage_cpu_buffer", True),
        (1, "use_hugepage_cpu_buffer", True),
        ("null", "copy_threads", None),
        ("s3fifo", "eviction_policy", "s3fifo"),
        ("0", "promotion_timeout_s", 0.0),
        ("8", "max_tp", 8),
        ("true", "namespace", "true"),
        ("null", "weight_version", "null"),
    ],
)
def test_values_are_read_as_environments_and_files_write_them(written, option, value):
    parsed = getattr(parse_config({option: written}), option)

    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cpu_cache_gb", 0),
        ("cpu_cache_gb", -1),
        ("cpu_cache_gb", "16GB"),
        ("cpu_cache_gb", 17_179_869_184),
        ("cpu_cache_gb", math.inf),
        ("cpu_cache_gb", math.nan),
        ("cpu_cache_gb", True),
        ("ssd_cache_gb", -1),
        ("ssd_cache_dir", 7),
        ("ssd_cache_dir", ["/a", 7]),
        ("ssd_directory_cap_gb", 0),
        ("promotion_timeout_s", -0.1),
        ("promotion_timeout_s", math.nan),
        ("promotion_timeout_s", math.inf),
        ("namespace", 2024),
        ("weight_version", 1.5),
        ("weight_version", "not UTF-8: \udcff"),
        ("namespace", ["a"]),
        ("max_tp", 0),
        ("max_tp", 10_000),
        ("block_tokens", 0),
        ("block_tokens", -64),
        ("block_tokens", 64.5),
        ("block_tokens", 10**9),
        ("eviction_policy", "LRU"),
        ("eviction_policy", "slru"),
        ("load_async", "yes please"),
        ("load_async", 2),
        ("min_load_tokens", -1),
        ("copy_threads", 0),
        ("copy_threads", 10_000),
        ("enable_gpu", "perhaps"),
        ("gpu_staging_mb", 0),
        ("gpu_staging_mb", 100_000),
    ],
)
def test_a_value_out_of_range_names_what_was_got_and_expected(option, value):
    assert (
        error_of({option: value})
        == f"{option} is {value!r}: expected " + (config._EXPECTED[option])
    )


def test_a_gpu_that_is_to_load_within_the_step_is_refused():
    assert error_of({"enable_gpu": True, "load_async": False}) == (
        "load_async is false, but a GPU loads beside the engine's steps: remove it"
    )


def test_a_version_to_trust_must_be_named():
    assert error_of({"trust_weight_version": True}) == (
        "trust_weight_version is true without weight_version: set both, or neither"
    )
    assert parse_config({"trust_weight_version": True, "weight_version": "7"}).trust_weight_version


def test_media_stay_in_the_process_until_their_identifiers_are_said_to_be_hashes():
    assert not parse_config().media_ids_are_hashes
    assert parse_config({"media_ids_are_hashes": "1"}).media_ids_are_hashes


def test_the_size_of_staging_is_in_mib():
    assert parse_config({"gpu_staging_mb": 1.5}).gpu_staging_bytes == 3 << 19


def test_a_long_value_does_not_flood_the_error():
    assert len(error_of({"cpu_cache_gb": "x" * 10_000})) < 200


def test_a_misspelled_option_names_the_nearest():
    assert error_of({"cpu_cach_gb": 16}) == (
        "unknown option cpu_cach_gb: did you mean cpu_cache_gb?"
    )


def test_an_option_like_no_other_lists_all():
    message = error_of({"zzz": 1})

    assert message.startswith("unknown option zzz: expected one of cpu_cache_gb, ssd_cache_gb, ")
    assert all(option in message for option in OPTIONS)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cpu_cache_bg", "cpu_cache_gb"),
        ("cpu-cache-gb", "cpu_cache_gb"),
        ("cpu_cache_gib", "cpu_cache_gb"),
        ("cpuCacheGB", "cpu_cache_gb"),
        ("ssd_cache_dirs", "ssd_cache_dir"),
        ("weight_verison", "weight_version"),
        ("copy_thread", "copy_threads"),
        ("enabel_gpu", "enable_gpu"),
    ],
)
def test_a_slip_names_what_was_meant(written, meant):
    assert error_of({written: 1}) == f"unknown option {written}: did you mean {meant}?"


@pytest.mark.parametrize(
    "option",
    [
        "enable_cpus",
        "enable_dpu",
        "disable_gpu",
        "load_sync",
        "max_load_tokens",
        "min_tp",
        "cpu_cache_mb",
        "gpu_cache_gb",
        "cpu_cache_dir",
        "distrust_weight_version",
        "use_hugepage_gpu_buffer",
        "promotion_timeout_ms",
    ],
)
def test_a_hint_never_names_a_switch_of_another_meaning(option):
    assert error_of({option: 1}).startswith(f"unknown option {option}: expected one of ")


def test_an_option_of_flexkv_that_asks_for_nothing_else_changes_nothing():
    users_file = {
        "cpu_cache_gb": 16,
        "ssd_cache_gb": 0,
        "ssd_cache_dir": "./ssd_cache",
        "enable_gds": False,
        "enable_mps": 0,
        "log_level": "DEBUG",
    }

    parsed = parse_config(users_file)

    assert parsed.cpu_cache_gb == 16
    assert parsed.ssd_cache_bytes is None
    assert parsed.ssd_directories == ()


def test_an_option_of_flexkv_that_asks_for_what_is_not_here_says_what_to_do():
    assert error_of({"enable_gds": True}) == (
        "enable_gds is True, but this version moves nothing between GPU and SSD directly: remove it"
    )


def test_what_one_layer_asks_for_a_later_one_can_take_back():
    assert parse_config({"enable_gds": True}, {"enable_gds": "0"}) == CacheConfig()
    assert parse_config({"enable_gds": True}, {"enable_gds": None}) == CacheConfig()


SSD = {"ssd_cache_gb": 0.5, "ssd_cache_dir": "/a"}


@pytest.mark.parametrize("layer", [SSD | {"enable_ssd": True}, {"enable_ssd": "0"}])
def test_the_switch_of_the_ssd_tier_may_say_what_the_size_says(layer):
    switch = layer.pop("enable_ssd")

    assert parse_config(layer, {"enable_ssd": switch}) == parse_config(layer)


def test_the_switch_of_the_ssd_tier_may_not_contradict_the_size():
    assert error_of({"enable_ssd": "true"}) == (
        "enable_ssd is true without ssd_cache_gb and ssd_cache_dir: set both, or remove it"
    )
    assert error_of(SSD | {"enable_ssd": False}) == (
        "enable_ssd is false, but ssd_cache_gb is 0.5: remove one of them"
    )


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("option", [*OPTIONS, *UPSTREAM_OPTIONS])
def test_null_and_empty_text_set_nothing(option, nothing):
    assert parse_config({option: nothing}) == CacheConfig()


def test_an_unknown_option_is_unknown_whatever_it_is_set_to():
    assert error_of({"cpu_cach_gb": None}).startswith("unknown option cpu_cach_gb")


def test_an_option_is_named_as_the_place_spells_it():
    with pytest.raises(ConfigError, match="unknown option LOAD_ASYN: did you mean LOAD_ASYNC"):
        check_option("load_asyn", spell=str.upper)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(any_letter),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(any_letter), inner, max_size=4)
    ),
)
names = st.text(any_letter, max_size=80) | st.sampled_from([*OPTIONS, *UPSTREAM_OPTIONS])


@given(st.lists(st.dictionaries(names, json_like, max_size=3), max_size=3))
@example([{"ssd_cache_dir": "~\0/a", "ssd_cache_gb": 1}])
@example([{"ssd_cache_dir": "/\ud800", "ssd_cache_gb": 1}])
@example([{"cpu_cache_gb": 10**400}])
@example([{"namespace": "\x1b[2J" * 100}])
def test_any_mapping_is_a_config_or_an_error_that_is_short_and_printable(layers):
    with refusals() as messages:
        assert isinstance(parse_config(*layers), CacheConfig)

    assert all(len(message) < 1000 for message in messages)
    assert all(message.isascii() and message.isprintable() for message in messages)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


HUGE = {
    "text": "\x1b" * 20_000_000,
    "digits": "9" * 20_000_000,
    "list": ["/a"] * 1_000_000,
    "depth": nested(100_000),
    "integer": 1 << 10_000_000,
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_value_is_refused_at_once_in_a_short_sentence(option, kind):
    began_s = time.thread_time()
    message = error_of({option: HUGE[kind]})

    assert time.thread_time() - began_s < 0.5
    assert len(message) < 300


@pytest.mark.parametrize("option", UPSTREAM_OPTIONS)
@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_value_of_an_option_of_flexkv_costs_nothing(option, kind):
    began_s = time.thread_time()
    with refusals() as messages:
        parse_config({option: HUGE[kind]})

    assert time.thread_time() - began_s < 0.5
    assert all(len(message) < 300 for message in messages)


def test_nothing_of_a_huge_value_is_left_in_the_error_that_an_engine_prints():
    with pytest.raises(ConfigError) as caught:
        parse_config({"eviction_policy": "x" * 1_000_000})

    assert len("".join(traceback.format_exception(caught.value))) < 10_000


def test_a_huge_name_is_refused_at_once_in_a_short_sentence():
    began_s = time.thread_time()
    message = error_of({"cpu_cache_gb" * 2_000_000: 1})

    assert time.thread_time() - began_s < 0.5
    assert len(message) < 1000


SIZES = ("cpu_cache", "ssd_cache", "ssd_directory_cap")


@pytest.mark.parametrize("size", SIZES)
def test_a_size_in_bytes_counts_gib(size):
    assert getattr(CacheConfig(**{f"{size}_gb": 0.5}), f"{size}_bytes") == 2**29


@pytest.mark.parametrize("size", SIZES)
def test_a_size_that_is_not_set_has_no_bytes(size):
    assert getattr(CacheConfig(), f"{size}_bytes") is None


def ssd_directories(written):
    return parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": written}).ssd_directories


def test_without_an_ssd_tier_there_are_no_directories():
    assert parse_config().ssd_directories == ()


@pytest.mark.parametrize(
    "written", ["/a;/b/c", " /a ; /b/c/ ;", ["/a", "/b/c"], ("/a", "/b/c", "/a"), "/a;/a/;/b/c"]
)
def test_directories_are_a_list_or_one_text_and_each_counts_once(written):
    assert ssd_directories(written) == (Path("/a"), Path("/b/c"))


@pytest.mark.parametrize(
    "written", ["/a,/b", "/a:/b", "/a, /b", "/a /b", "/a:~/b", "/a|/b", "/a\n/b", "/a;/b,/c"]
)
def test_several_paths_in_one_are_refused(written):
    assert error_of({"ssd_cache_gb": 1, "ssd_cache_dir": written}) == (
        f"ssd_cache_dir is {written!r}: expected ; between directories, or a list of them if one "
        "is really called that"
    )


@pytest.mark.parametrize("name", ["/a,/b", "/a:/b", "/a, b", "/2026-11-30T12:00/a", "/my disk/a"])
def test_a_directory_may_be_called_whatever_it_is_in_a_list(name):
    assert ssd_directories([name]) == (Path(name),)


@pytest.mark.parametrize("name", ["/a,b", "/a, b", "/2026-11-30T12:00/a", "/my disk/a"])
def test_a_path_may_hold_what_is_between_paths_elsewhere(name):
    assert ssd_directories(name) == (Path(name),)


def test_a_directory_in_a_list_may_have_a_semicolon_in_its_name():
    assert ssd_directories(["/a;b"]) == (Path("/a;b"),)


def test_a_tilde_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    assert ssd_directories("~/cache;/b") == (Path("/home/me/cache"), Path("/b"))


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ({"ssd_cache_gb": 1}, "ssd_cache_gb is set without ssd_cache_dir: set both, or neither"),
        (
            {"ssd_cache_gb": 1, "ssd_cache_dir": " ; "},
            "ssd_cache_gb is set without ssd_cache_dir: set both, or neither",
        ),
        (
            {"ssd_cache_dir": "/a"},
            "ssd_cache_dir is set without ssd_cache_gb: set both, or neither",
        ),
        (
            {"ssd_directory_cap_gb": 1},
            "ssd_directory_cap_gb is set without ssd_cache_gb: remove it, or set both",
        ),
        (
            {"ssd_cache_gb": 1, "ssd_cache_dir": "/a;b/c"},
            "ssd_cache_dir names 'b/c': expected a path that begins with / and has no NUL",
        ),
        (
            {"ssd_cache_gb": 1, "ssd_cache_dir": "/a\0b"},
            "ssd_cache_dir names '/a\\x00b': expected a path that begins with / and has no NUL",
        ),
        (
            {"ssd_cache_gb": 1, "ssd_cache_dir": "~no-such-user/a"},
            "ssd_cache_dir is '~no-such-user/a', but there is no such home directory",
        ),
    ],
)
def test_half_an_ssd_tier_or_a_path_that_depends_on_the_start_is_refused(layer, sentence):
    assert error_of(layer) == sentence


def test_the_halves_of_an_ssd_tier_may_come_from_different_places():
    assert parse_config({"ssd_cache_dir": "/a"}, {"ssd_cache_gb": "0.5"}).ssd_cache_bytes == 2**29


def test_a_size_of_zero_is_no_ssd_tier_whatever_else_is_said_of_it():
    asked = parse_config(
        {"ssd_cache_gb": 500, "ssd_cache_dir": "~no-such-user/a", "ssd_directory_cap_gb": 9},
        {"ssd_cache_gb": "0"},
    )

    assert asked.ssd_cache_bytes is None
    assert asked.ssd_directories == ()


def test_an_ssd_tier_of_a_file_can_be_taken_back():
    layers = {"ssd_cache_gb": 1, "ssd_cache_dir": "/a"}, {"ssd_cache_gb": None}

    assert parse_config(*layers, {"ssd_cache_dir": None}) == CacheConfig()


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        CacheConfig().load_async = False
