import logging

import pytest

from flexkv_connectors.fault_barrier import FaultBarrier


def fail() -> int:
    raise RuntimeError("boom")


def test_a_hook_that_works_answers_itself():
    assert FaultBarrier().run(lambda: 7, lambda: 0) == 7


def test_a_hook_that_fails_is_answered_for():
    assert FaultBarrier().run(fail, lambda: 0) == 0


def test_after_a_failure_no_hook_runs_any_more():
    barrier, calls = FaultBarrier(), []
    barrier.run(fail, lambda: 0)
    barrier.run(lambda: calls.append("hook"), lambda: calls.append("instead"))
    assert calls == ["instead"]


def test_a_failure_is_logged_once_with_its_traceback(caplog):
    barrier = FaultBarrier()
    with caplog.at_level(logging.WARNING):
        barrier.run(fail, lambda: 0)
        barrier.run(fail, lambda: 0)
    assert [record.exc_info is not None for record in caplog.records] == [True, False]
    assert "boom" in barrier.reason


def test_the_log_says_what_the_engine_goes_on_without(caplog):
    for barrier in (FaultBarrier(), FaultBarrier(without="metrics")):
        barrier.run(fail, lambda: 0)
    assert "serving without KV caching" in caplog.text
    assert "serving without metrics" in caplog.text


def test_switching_off_keeps_the_first_reason():
    barrier = FaultBarrier()
    barrier.switch_off("the model is hybrid")
    barrier.switch_off("something else")
    assert barrier.reason == "the model is hybrid"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_stops_the_process_is_not_held_back(error):
    def stop():
        raise error

    with pytest.raises(error):
        FaultBarrier().run(stop, lambda: None)
