"""What is answered, and when."""

import pytest

from flexkv_connectors.session.promises import Promises
from flexkv_connectors.tensorrt_llm.answers import Answers
from flexkv_core.errors import BrokenPromiseError


@pytest.fixture
def promises():
    """One load that is promised."""
    promises = Promises()
    promises.make("7", [1])
    return promises


@pytest.fixture
def answers(promises):
    return Answers(promises)


def test_a_load_is_told_only_after_it_was_handed_in(promises, answers):
    promises.settle("7", 1)
    assert answers.answer() == ([], [])
    answers.ask([7], [])
    assert answers.answer() == ([], [7])
    assert answers.answer() == ([], [])


def test_a_load_that_is_handed_in_before_its_metadata_came_is_not_told():
    answers = Answers(Promises())
    answers.ask([7], [])
    assert answers.answer() == ([], [])


@pytest.mark.parametrize("is_answered_between", [False, True])
def test_a_load_that_is_promised_anew_is_told_when_that_one_has_ended(
    promises, answers, is_answered_between
):
    promises.settle("7", 1)
    if is_answered_between:
        assert answers.answer() == ([], [])
    promises.make("7", [2])
    answers.ask([7], [])
    assert answers.answer() == ([], [])
    promises.settle("7", 1)
    assert answers.answer() == ([], [7])


def test_the_end_of_a_request_is_told_when_its_load_has_ended(promises, answers):
    answers.ask([7], [7, 8])
    assert answers.answer() == ([8], [])
    promises.settle("7", 1)
    assert answers.answer() == ([7], [7])


def test_loads_within_the_step_are_not_told(promises, answers):
    promises.settle("7", 1)
    answers.require_loaded()
    answers.ask([7], [])
    assert answers.answer() == ([], [])


def test_an_open_promise_stops_the_engine(promises, answers):
    with pytest.raises(BrokenPromiseError, match="requests \\[7\\]"):
        answers.require_loaded()
    promises.settle("7", 1)
    answers.require_loaded()
