"""The demo refuses to show what is not true: every check fails on a measurement that is off."""

from dataclasses import replace

import pytest

from demo.client import Answer
from demo.process import DemoError
from demo.scenario import (
    COLD,
    COMPUTED,
    FROM_HOST,
    FROM_VLLM,
    HOST,
    LOCAL,
    SALTED,
    SHARED,
    Measurement,
    _check_answers,
    _check_sources,
)

TOKEN_BYTES = 16


def measurement(source, cached_tokens):
    answer = Answer(text="", ttft_s=1, prompt_tokens=1000, cached_tokens=cached_tokens)
    return Measurement(answer, source, cached_tokens * TOKEN_BYTES if source == FROM_HOST else 0)


def true_measurements():
    return {
        COLD: measurement(COMPUTED, 0),
        LOCAL: measurement(FROM_VLLM, 896),
        HOST: measurement(FROM_HOST, 896),
        SHARED: measurement(FROM_HOST, 640),
        SALTED: measurement(COMPUTED, 0),
    }


def test_true_measurements_pass():
    _check_sources(true_measurements(), shared_tokens=700, token_bytes=TOKEN_BYTES)


@pytest.mark.parametrize(
    ("step", "wrong"),
    [
        (COLD, measurement(FROM_HOST, 896)),
        (LOCAL, measurement(COMPUTED, 0)),
        (HOST, measurement(FROM_VLLM, 896)),
        (HOST, measurement(FROM_HOST, 768)),
        (HOST, replace(measurement(FROM_HOST, 896), loaded_bytes=0)),
        (SHARED, measurement(FROM_HOST, 896)),
        (SALTED, measurement(FROM_HOST, 640)),
    ],
)
def test_a_prefix_from_elsewhere_is_refused(step, wrong):
    shown = {**true_measurements(), step: wrong}
    with pytest.raises(DemoError, match=step):
        _check_sources(shown, shared_tokens=700, token_bytes=TOKEN_BYTES)


def test_equal_answers_pass():
    _check_answers({COLD: "a", LOCAL: "a", HOST: "a", SHARED: "b", SALTED: "b"})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({LOCAL: "x"}, "several answers"),
        ({HOST: "x"}, "several answers"),
        ({SHARED: "x"}, "two answers"),
        ({SHARED: "a", SALTED: "a"}, "prove nothing"),
    ],
)
def test_an_answer_that_changed_is_refused(changed, sentence):
    texts = {COLD: "a", LOCAL: "a", HOST: "a", SHARED: "b", SALTED: "b", **changed}
    with pytest.raises(DemoError, match=sentence):
        _check_answers(texts)
