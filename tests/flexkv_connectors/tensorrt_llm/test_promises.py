"""What is answered, and when."""

import pytest

from flexkv_connectors.tensorrt_llm.promises import Promises
from flexkv_core.errors import BrokenPromiseError


@pytest.fixture
def promises():
    """One load that is promised."""
    promises = Promises(tells_loads=True)
    promises.make([7])
    return promises


def test_a_load_is_told_only_after_it_was_handed_in(promises):
    promises.keep([7])
    assert promises.answer() == ([], [])
    promises.ask([7], [])
    assert promises.answer() == ([], [7])
    assert promises.answer() == ([], [])


def test_a_load_that_is_handed_in_before_its_metadata_came_is_not_told():
    promises = Promises(tells_loads=True)
    promises.ask([7], [])
    assert promises.answer() == ([], [])


def test_a_load_that_is_promised_anew_is_told_when_that_one_has_ended(promises):
    promises.keep([7])
    promises.make([7])
    promises.ask([7], [])
    assert promises.answer() == ([], [])
    promises.keep([7])
    assert promises.answer() == ([], [7])


def test_the_end_of_a_request_is_told_when_its_load_has_ended(promises):
    promises.ask([7], [7, 8])
    assert promises.answer() == ([8], [])
    promises.keep([7])
    assert promises.answer() == ([7], [7])


def test_loads_within_the_step_are_not_told():
    promises = Promises(tells_loads=False)
    promises.make([7])
    promises.keep([7])
    promises.ask([7], [])
    assert promises.answer() == ([], [])


def test_an_open_promise_stops_the_engine(promises):
    with pytest.raises(BrokenPromiseError, match="requests \\[7\\]"):
        promises.require_kept()
    promises.keep([7])
    promises.require_kept()
