import math
import os
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexkv_core.option_file import read_options


@pytest.fixture
def written(tmp_path):
    """Writes a file of options; returns its path."""

    def write(content, name="flexkv.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def error_of(path, kind=ValueError):
    began_s = time.thread_time()
    with pytest.raises(kind) as caught:
        read_options(path)
    assert time.thread_time() - began_s < 1
    return getattr(caught.value, "strerror", None) or str(caught.value)


def test_a_yaml_file_gives_typed_options(written):
    path = written(
        "cpu_cache_gb: 0.5\nload_async: no\neviction_policy: 's3fifo'\n# block_tokens: 16\n"
        "ssd_cache_dir:\n- /a\n- /b\n"
    )

    assert read_options(path) == {
        "cpu_cache_gb": 0.5,
        "load_async": False,
        "eviction_policy": "s3fifo",
        "ssd_cache_dir": ["/a", "/b"],
    }


def test_a_json_file_gives_typed_options(written):
    path = written('{\n\t"cpu_cache_gb": 0.5,\n\t"load_async": false\n}', "flexkv.json")

    assert read_options(path) == {"cpu_cache_gb": 0.5, "load_async": False}


@pytest.mark.parametrize("text", ["", "\n", "# all options are commented out\n", "---\n", "{}"])
def test_a_file_without_options_sets_nothing(written, text):
    assert read_options(written(text)) == {}


def test_a_null_is_written_as_such(written):
    assert read_options(written("namespace: null\nmax_tp:\n")) == {
        "namespace": None,
        "max_tp": None,
    }


def test_a_name_that_is_not_text_becomes_text(written):
    assert read_options(written("1: 2\n[a]: b\n")) == {"1": 2, "['a']": "b"}


def test_a_folder_is_no_file(tmp_path):
    assert error_of(tmp_path, IsADirectoryError) == "Is a directory"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert error_of(tmp_path / "pipe", OSError) == "it is not a plain file"


def test_a_device_without_end_is_not_read(tmp_path):
    (tmp_path / "endless").symlink_to("/dev/zero")

    assert error_of(tmp_path / "endless", OSError) == "it is not a plain file"


def test_a_link_to_a_file_is_the_file(written, tmp_path):
    (tmp_path / "link.yaml").symlink_to(written("block_tokens: 16"))

    assert read_options(tmp_path / "link.yaml") == {"block_tokens": 16}


def test_a_file_of_another_size_than_options_have_is_not_read(written):
    path = written("")
    os.truncate(path, 20 << 30)

    assert error_of(path, OSError) == "it is larger than 65536 bytes"


def test_the_largest_file_is_read_at_once(written):
    comment = b"#" * (2**16 - 20)
    many = b"".join(b"a%d: [x, y]\n" % number for number in range(2500))

    assert read_options(written(comment + b"\nblock_tokens: 16\n")) == {"block_tokens": 16}
    began_s = time.thread_time()
    assert len(read_options(written(many))) == 2500
    assert time.thread_time() - began_s < 5


def test_what_is_no_text_is_refused(written):
    assert error_of(written(b"\xff\xfe\x00")).startswith("'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- cpu_cache_gb", "list"), ("cpu_cache_gb=16", "str"), ("16", "int"), ("false", "bool")],
)
def test_a_file_that_is_no_mapping_says_what_one_is(written, text, kind):
    assert error_of(written(text)) == (
        f"it holds a {kind} at its top level: expected options with their values, such as "
        "'cpu_cache_gb: 16'"
    )


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("x: 1\na: b: c", "f.yaml", "mapping values are not allowed here in line 2"),
        ("a: \x00", "f.yaml", "unacceptable character #x0000"),
        ("a: 1\n---\nb: 2", "f.yaml", "but found another document in line 2"),
        ("{", "f.json", "Expecting property name"),
        ("", "f.json", "Expecting value"),
        ("a: 2026-13-45", "f.yaml", "month must be in 1..12"),
        ("a: " + "9" * 5000, "f.yaml", "Exceeds the limit"),
        ('{"a": ' + "9" * 5000 + "}", "f.json", "Exceeds the limit"),
        ("<<: {a: 1}", "f.yaml", "merge"),
    ],
)
def test_a_file_that_cannot_be_parsed_says_why(written, text, name, reason):
    assert reason in error_of(written(text, name))


BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!bool x",
        'a: !!int ""',
        "a: !!timestamp x",
        "a: ! x",
    ],
    ids=["bomb", "circle", "code", "bool", "int", "time", "bare"],
)
def test_anchors_aliases_and_tags_are_refused(written, text):
    assert error_of(written(text)) == "anchors, aliases and tags are not allowed in line 1"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a: " + "[" * 60_000, "f.yaml"),
        ("- " * 30_000, "f.yaml"),
        ("? " * 30_000, "f.yaml"),
        ("{a: " * 16_000, "f.yaml"),
        ('{"a":' * 12_000, "f.json"),
        ('{"a":' + "[" * 60_000, "f.json"),
    ],
)
def test_deep_nesting_is_refused_at_once(written, text, name):
    assert error_of(written(text, name)) == "it is nested too deeply"


@pytest.mark.parametrize(
    ("text", "name"),
    [("a: 1\nb: 2\na: 3", "f.yaml"), ('{"a": 1, "b": 2, "a": 1}', "f.json"), ("1: 2\n'1': 3", "f")],
)
def test_a_name_may_be_there_once(written, text, name):
    assert re.fullmatch("it sets (a|1) twice", error_of(written(text, name)))


def test_json_may_say_what_no_option_takes(written):
    options = read_options(written('{"a": NaN, "b": "\\ud800"}', "f.json"))

    assert math.isnan(options["a"])
    assert options["b"] == "\ud800"


yaml_like = st.text(st.sampled_from("ab01.-+:_,[]{}#&*!|>%@`'\"?<=~ \n\tTeExo\\"), max_size=60)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(yaml_like | st.text(max_size=60), st.sampled_from(["f.yaml", "f.json"]))
def test_any_file_is_options_or_one_of_two_errors(written, text, name):
    path = written(text.encode("utf-8", "surrogatepass"), name)
    try:
        options = read_options(path)
    except (OSError, ValueError):
        return
    assert all(isinstance(option, str) for option in options)
