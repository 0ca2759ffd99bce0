import logging

import pytest

from flexkv_core.identity.progress import Progress
from flexkv_core.testing.doubles import ManualClock


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_long_work_is_told_by_tenths(lines):
    clock = ManualClock()
    progress = Progress([10**10] * 100, clock)
    for _ in range(1000):
        clock.advance(10)
        progress.add(10**9)
    progress.end()

    assert lines()[0] == "identity.hashing files=100 gb=1000.0"
    assert lines()[1:-1] == [
        f"identity.hashing done_gb={100 * tenth}.0 of_gb=1000.0" for tenth in range(1, 11)
    ]
    assert lines()[-1] == "identity.hashed files=100 gb=1000.0 s=10000.0"


def test_fast_work_is_told_twice(lines):
    progress = Progress([10**9], ManualClock())
    for _ in range(10):
        progress.add(10**8)
    progress.end()

    assert len(lines()) == 2


def test_no_work_is_not_told(lines):
    Progress([]).end()

    assert lines() == []
