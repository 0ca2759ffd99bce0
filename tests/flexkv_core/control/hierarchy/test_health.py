"""When a failing tier is left alone, and when it is tried again."""

import pytest

from flexkv_core.control.hierarchy.health import Health
from flexkv_core.metrics import METRICS
from flexkv_core.plan import Status

RETRY_S = 30.0


@pytest.fixture
def counted():
    return []


@pytest.fixture
def health(counted):
    return Health("reading", counted.append)


def fail(health, number, now_s=0.0, status=Status.ERROR):
    for _ in range(number):
        health.note(status, now_s)


def test_two_failures_are_no_reason(health):
    fail(health, 2)
    assert health.allows(0.0)


def test_an_attempt_of_what_works_leaves_it_on(health):
    health.begin(0.0)
    assert not health.is_off


def test_three_failures_in_a_row_switch_off(health):
    fail(health, 3)
    assert health.is_off
    assert not health.allows(RETRY_S - 0.1)


def test_failures_with_a_success_between_them_are_not_in_a_row(health):
    fail(health, 2)
    health.note(Status.OK, 0.0)
    fail(health, 2)
    assert not health.is_off


def test_one_trial_is_let_through_every_half_minute(health):
    fail(health, 3)
    assert health.allows(RETRY_S)
    health.begin(RETRY_S)
    assert not health.allows(RETRY_S)
    assert health.allows(2 * RETRY_S)


def test_a_trial_that_fails_changes_nothing(health):
    fail(health, 3)
    health.begin(RETRY_S)
    fail(health, 1, RETRY_S + 1)
    assert health.is_off
    assert not health.allows(2 * RETRY_S - 1)


def test_a_trial_that_succeeds_switches_on(health):
    fail(health, 3)
    health.begin(RETRY_S)
    health.note(Status.OK, RETRY_S)
    assert not health.is_off
    fail(health, 2)
    assert not health.is_off


@pytest.mark.parametrize("status", [Status.OK, Status.MISS, Status.CORRUPT])
def test_whatever_it_answers_an_answer_is_one(health, status):
    fail(health, 3)
    health.note(status, 1.0)
    assert not health.is_off


def test_a_busy_tier_neither_fails_nor_answers(health):
    fail(health, 2)
    fail(health, 9, status=Status.BUSY)
    assert not health.is_off
    fail(health, 1)
    assert health.is_off
    health.note(Status.BUSY, 1.0)
    assert health.is_off


def test_a_closed_tier_is_never_tried_again_and_no_late_answer_opens_it(health):
    health.note(Status.CLOSED, 0.0)
    health.note(Status.OK, 1.0)
    assert health.is_off
    assert not health.allows(1e9)


def test_what_fails_can_close(health, counted):
    fail(health, 3)
    health.note(Status.CLOSED, 0.0)
    assert not health.allows(1e9)
    assert counted == ["ssd_failed", "ssd_closed"]


def test_each_state_is_counted_and_said_once_under_its_name(health, counted, caplog):
    caplog.set_level("INFO")
    fail(health, 2, status=Status.BUSY)
    fail(health, 9)
    health.note_silence(1.0)
    fail(health, 2, status=Status.OK)
    health.note_silence(2.0)
    fail(health, 2, status=Status.OK)
    fail(health, 3, status=Status.TIMEOUT)
    fail(health, 2, status=Status.CLOSED)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "tier.busy",
        "tier.off state=failed",
        "tier.on",
        "tier.off state=unheard",
        "tier.on",
        "tier.off state=unheard",
        "tier.off state=closed",
    ]
    assert counted == ["ssd_failed", "ssd_unheard", "ssd_unheard", "ssd_closed"]
    assert set(counted) <= METRICS.keys()
