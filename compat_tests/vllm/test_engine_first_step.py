"""Requests that take one step, on an engine that loads within a step: the first one included."""

import pytest
from engine_checks import PAGE_TOKENS, SABOTAGED, assert_nothing_leaked, counts
from engine_process import Ask, random_tokens

HIT_TOKENS = 3 * PAGE_TOKENS
ASK = Ask(prompt=random_tokens(1, HIT_TOKENS + 16), max_tokens=1)


@pytest.fixture(scope="module")
def engine(start_engine):
    options = {"kv_connector_extra_config": {"cpu_cache_gb": 0.5, "load_async": False}}
    return start_engine("oracle", connector=SABOTAGED | options)


@pytest.fixture(scope="module")
def again(engine):
    """Serve a prompt before any step has been made, and again from the cache."""
    engine.complete(ASK)
    engine.forget()
    (completion,) = engine.complete(ASK)
    return completion


def test_the_first_request_after_a_start_is_saved_even_if_it_takes_one_step(again):
    assert again.num_cached_tokens == HIT_TOKENS


def test_what_is_loaded_for_a_request_of_one_step_is_counted(engine, again):
    before = counts(engine)
    engine.forget()
    (completion,) = engine.complete(ASK)
    assert completion.num_cached_tokens == HIT_TOKENS
    growth = {name: value - before[name] for name, value in counts(engine).items()}
    assert growth["load_tokens"] == growth["match_hit_blocks"] * PAGE_TOKENS == HIT_TOKENS


def test_nothing_is_left_behind(engine):
    assert_nothing_leaked(engine)
