import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexkv_core.excerpt import clipped, excerpt

NASTY = "\x1b[31m\n\r\x07\x7f\x9b\u202e\ud800é"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [None, True, 7, -0.5, math.inf, "x", b"x", [1, ["a"]], {"a": {"b": [None]}, 1: 2}, ""]
)
def test_a_short_value_is_written_as_python_writes_it(value):
    assert excerpt(value) == repr(value)


def test_a_long_value_ends_in_dots():
    assert excerpt("x" * 100) == "'" + "x" * 76 + "..."
    assert clipped("x" * 300) == "x" * 237 + "..."


def test_text_as_long_as_fits_is_whole():
    assert excerpt("x" * 78) == repr("x" * 78)
    assert clipped("x" * 240) == "x" * 240


@pytest.mark.parametrize("written", [excerpt(NASTY), excerpt({NASTY: [NASTY]}), clipped(NASTY)])
def test_no_letter_is_left_that_could_command_a_terminal(written):
    assert written.isascii()
    assert written.isprintable()
    assert r"\x1b[31m\n\r\x07\x7f\x9b\u202e\ud800\xe9" in written


@pytest.mark.parametrize(
    "value",
    [
        "\x1b" * 20_000_000,
        b"\x1b" * 20_000_000,
        [0] * 5_000_000,
        {"a" * 20_000_000: 1},
        {number: number for number in range(500_000)},
        nested(100_000),
        1 << 50_000_000,
    ],
    ids=["text", "bytes", "list", "name", "dict", "depth", "integer"],
)
def test_a_huge_value_costs_no_more_than_a_small_one(value):
    began_s = time.thread_time()
    written = excerpt(value)

    assert time.thread_time() - began_s < 0.05
    assert len(written) <= 80


def test_what_is_no_json_is_named_by_its_type_alone():
    class Hostile:
        def __repr__(self):
            raise AssertionError

    assert excerpt([Hostile(), {1, 2}]) == "[a Hostile, a set]"


@given(values)
def test_any_value_is_short_and_printable(value):
    for written in (excerpt(value), clipped(str(value))):
        assert len(written) <= 240
        assert written.isascii()
        assert written.isprintable() or not written


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=240))
def test_printable_text_stays_itself(text):
    assert clipped(text) == text


@given(st.text())
def test_text_is_escaped_once(text):
    assert clipped(clipped(text)) == clipped(text)
