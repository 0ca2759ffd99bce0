"""How fast something has lately been."""

import math

import pytest

from flexkv_core.control.hierarchy.rate import Rate


@pytest.fixture
def rate():
    return Rate(memory_s=60.0)


def test_before_any_measurement_nothing_is_known(rate):
    assert rate.seconds_for(1, 0.0) is None


def test_a_measurement_is_a_speed(rate):
    rate.note(10, 2.0, now_s=0.0)
    assert rate.seconds_for(5, 0.0) == 1.0


def test_the_latest_measurements_count_most(rate):
    rate.note(1, 1.0, now_s=0.0)
    for _ in range(20):
        rate.note(1, 3.0, now_s=1.0)
    assert rate.seconds_for(1, 1.0) == pytest.approx(3.0, rel=0.01)


def test_one_measurement_does_not_decide_alone(rate):
    rate.note(1, 1.0, now_s=0.0)
    rate.note(1, 3.0, now_s=1.0)
    assert 1.0 < rate.seconds_for(1, 1.0) < 3.0


def test_what_is_old_is_forgotten(rate):
    rate.note(1, 9.0, now_s=0.0)
    assert rate.seconds_for(1, 59.9) == 9.0
    assert rate.seconds_for(1, 60.0) is None


def test_what_is_forgotten_does_not_weigh_on_what_comes_after(rate):
    rate.note(1, 9.0, now_s=0.0)
    rate.note(1, 1.0, now_s=100.0)
    assert rate.seconds_for(1, 100.0) == 1.0


def test_nothing_in_a_long_time_is_for_ever(rate):
    rate.note(0, 1.0, now_s=0.0)
    assert rate.seconds_for(1, 0.0) == math.inf


def test_nothing_in_no_time_says_nothing(rate):
    rate.note(0, 0.001, now_s=0.0)
    assert rate.seconds_for(1, 0.0) is None


def test_a_clock_that_stands_still_is_no_division_by_nothing(rate):
    rate.note(8, 0.0, now_s=0.0)
    assert rate.seconds_for(8, 0.0) == 0.0
