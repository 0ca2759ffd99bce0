"""How long computing takes on this engine."""

import pytest

from flexkv_connectors.vllm.prefill_speed import PrefillSpeed


@pytest.fixture
def speed():
    return PrefillSpeed()


def test_before_any_step_nothing_is_known(speed):
    assert speed.seconds_for(64, 0.0) is None


def test_a_step_is_a_measurement(speed):
    speed.begin_step(100, 10.0)
    speed.end_step(12.0)
    assert speed.seconds_for(50, 12.0) == 1.0


def test_an_engine_that_was_idle_for_a_day_computes_as_fast_as_before(speed):
    speed.begin_step(100, 10.0)
    speed.end_step(12.0)
    assert speed.seconds_for(50, 100_000.0) == 1.0


def test_decoding_says_nothing(speed):
    speed.begin_step(63, 10.0)
    speed.end_step(12.0)
    assert speed.seconds_for(50, 12.0) is None


def test_a_step_without_tokens_is_no_step(speed):
    speed.begin_step(0, 10.0)
    speed.begin_step(100, 11.0)
    speed.end_step(12.0)
    assert speed.seconds_for(100, 12.0) == 1.0


def test_steps_that_overlap_are_not_counted_twice(speed):
    speed.begin_step(100, 10.0)
    speed.begin_step(100, 10.0)
    speed.end_step(11.0)
    speed.end_step(12.0)
    assert speed.seconds_for(100, 12.0) == 1.0


def test_the_end_of_a_step_that_never_began_is_nothing(speed):
    speed.end_step(1.0)
    assert speed.seconds_for(1, 1.0) is None
