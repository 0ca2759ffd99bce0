"""Blocks of two pages, loaded within the engine's step: hits that begin and end inside a block."""

import pytest
from engine_checks import SABOTAGED, external_hit_tokens
from engine_process import Ask, random_tokens
from failed_copies import FailedCopies

PROMPT = random_tokens(1, 1200)
SAVED_TOKENS = 1024


@pytest.fixture(scope="module")
def policy():
    return "recompute"


@pytest.fixture(scope="module")
def engine(start_engine, policy):
    options = {
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {
            "cpu_cache_gb": 0.1,
            "block_tokens": 256,
            "load_async": False,
        },
    }
    return start_engine("oracle", connector=SABOTAGED | options)


@pytest.fixture(scope="module")
def cold(engine):
    (completion,) = engine.complete(Ask(prompt=PROMPT))
    return completion


@pytest.fixture
def saved(engine, cold):
    """Host memory holds the prompt, the engine nothing; return the digests of the pages saved."""
    engine.forget_all()
    engine.complete(Ask(prompt=PROMPT, max_tokens=1))
    digests = engine.cached_pages(PROMPT)
    engine.forget()
    return digests[: SAVED_TOKENS // 128]


@pytest.mark.parametrize("num_local_tokens", [0, 128, 256, 384, 640, 896, 1024])
def test_a_local_hit_that_ends_anywhere_is_continued_from_host_memory(
    engine, cold, saved, num_local_tokens
):
    if num_local_tokens:
        engine.complete(Ask(prompt=PROMPT[: num_local_tokens + 1], max_tokens=1))
    local_pages = engine.cached_pages(PROMPT)
    before = external_hit_tokens(engine)

    (loaded,) = engine.complete(Ask(prompt=PROMPT))

    assert num_local_tokens == len(local_pages) * 128
    assert loaded.num_cached_tokens == SAVED_TOKENS
    assert SAVED_TOKENS - num_local_tokens == external_hit_tokens(engine) - before
    assert cold.tokens == loaded.tokens
    pages = engine.cached_pages(PROMPT)[: len(saved)]
    assert local_pages == pages[: len(local_pages)]
    assert saved[len(local_pages) :] == pages[len(local_pages) :]


def test_a_hit_of_an_aligned_prompt_leaves_one_page_to_compute(engine, saved):
    """A synchronous load is part of a step that has to compute one token at least."""
    (loaded,) = engine.complete(Ask(prompt=PROMPT[:SAVED_TOKENS]))
    pages = engine.cached_pages(PROMPT[:SAVED_TOKENS])
    engine.forget_all()
    (recomputed,) = engine.complete(Ask(prompt=PROMPT[:SAVED_TOKENS]))

    assert loaded.num_cached_tokens == SAVED_TOKENS - 128
    assert saved[:7] == pages[:7]
    assert recomputed.tokens == loaded.tokens


def test_a_local_hit_beyond_the_last_whole_block_is_offered_nothing(engine, cold, saved):
    engine.complete(Ask(prompt=PROMPT))
    before = external_hit_tokens(engine)

    (local,) = engine.complete(Ask(prompt=PROMPT))

    assert local.num_cached_tokens == 1152
    assert external_hit_tokens(engine) - before == 0
    assert cold.tokens == local.tokens


class TestFailedCopies(FailedCopies):
    """Synchronous loads, recomputed."""
