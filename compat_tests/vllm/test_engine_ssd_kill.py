"""Engines killed at random moments: what was visible is found again, and it is right."""

import pytest
from ssd_engines import connector_on
from ssd_kills import play_rounds

NUM_ROUNDS = 3


@pytest.fixture(scope="module")
def rounds(start_engine, tmp_path_factory):
    connector = connector_on(tmp_path_factory.mktemp("ssd"))
    start = lambda: start_engine("oracle", connector=connector, max_num_seqs=1)  # noqa: E731
    return list(play_rounds(start, NUM_ROUNDS, seed=7))


def test_what_was_visible_before_a_kill_is_found_after_it(rounds):
    assert all(played.num_fresh > 0 for played in rounds)
    assert all(played.num_found >= 0.99 * played.num_visible for played in rounds)


def test_nothing_that_is_loaded_after_a_kill_is_wrong(rounds):
    assert sum(played.num_loaded_pages for played in rounds) > 0
    assert [played.num_wrong_pages for played in rounds] == [0] * NUM_ROUNDS
