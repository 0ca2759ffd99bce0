"""When a failing tier is left alone, and when it is tried again."""

import pytest

from flexkv_core.control.hierarchy.health import Health

RETRY_S = 30.0


@pytest.fixture
def health():
    return Health("reading")


def fail(health, number, now_s=0.0):
    for _ in range(number):
        health.note(ok=False, now_s=now_s)


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
    health.note(ok=True, now_s=0.0)
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
    health.note(ok=True, now_s=RETRY_S)
    assert not health.is_off
    fail(health, 2)
    assert not health.is_off


def test_every_change_is_said_once(health, caplog):
    fail(health, 9)
    health.switch_off("does not answer", 1.0)
    health.note(ok=True, now_s=RETRY_S)
    health.note(ok=True, now_s=RETRY_S)
    assert [record.msg.split(":")[0] for record in caplog.records] == ["tier.off", "tier.on"]
