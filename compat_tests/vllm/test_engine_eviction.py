"""A host tier smaller than what is used: everything that is served stays right."""

import random

import pytest
from engine_checks import (
    PAGE_BYTES,
    SABOTAGED,
    assert_nothing_leaked,
    assert_reset_gives_everything_back,
    counts,
    external_hit_tokens,
)
from engine_process import Ask, random_tokens
from failed_copies import FailedCopies

CAPACITY_BLOCKS = 12
HEADS = [random_tokens(seed, length) for seed, length in ((1, 270), (2, 420), (3, 650))]
TAILS = [random_tokens(seed, length) for seed, length in ((4, 40), (5, 150), (6, 310))]
ASKS = [Ask(prompt=head + tail, max_tokens=12) for head in HEADS for tail in TAILS]
"""Nine prompts of 2 to 7 blocks, 19 of them distinct."""

ENGINES = {
    "lru": ("recompute", True),
    "s3fifo": ("fail", False),
}
"""By eviction policy: what happens to failed loads, and whether loads are asynchronous."""


@pytest.fixture(scope="module", params=sorted(ENGINES))
def eviction_policy(request):
    return request.param


@pytest.fixture(scope="module")
def policy(eviction_policy):
    return ENGINES[eviction_policy][0]


@pytest.fixture(scope="module")
def engine(start_engine, eviction_policy):
    policy, load_async = ENGINES[eviction_policy]
    options = {
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {
            "cpu_cache_gb": CAPACITY_BLOCKS * PAGE_BYTES / 2**30,
            "eviction_policy": eviction_policy,
            "load_async": load_async,
        },
    }
    return start_engine("oracle", connector=SABOTAGED | options, max_num_batched_tokens=600)


@pytest.fixture(scope="module")
def cold(engine):
    completions = []
    for ask in ASKS:
        engine.forget_all()
        completions += engine.complete(ask)
    return {tuple(a.prompt): c.tokens for a, c in zip(ASKS, completions, strict=True)}


def test_everything_served_under_steady_eviction_is_right(engine, cold):
    engine.forget_all()
    rng = random.Random(0)
    start, hits = counts(engine), external_hit_tokens(engine)
    for _ in range(16):
        engine.forget()
        asks = rng.choices(ASKS, k=rng.choice((1, 2, 3)))

        answers = engine.complete(*asks)

        assert [cold[tuple(ask.prompt)] for ask in asks] == [a.tokens for a in answers]
        audit = engine.connector("audit")
        assert audit["num_in_flight"] == 0
        assert audit["num_used_blocks"] <= CAPACITY_BLOCKS
    end = counts(engine)
    assert end["host_capacity_blocks"] == CAPACITY_BLOCKS
    assert end["evicted_blocks"] - start["evicted_blocks"] > CAPACITY_BLOCKS
    assert external_hit_tokens(engine) - hits > 1000
    assert end["load_failed_blocks"] == start["load_failed_blocks"]


def test_a_prompt_larger_than_the_tier_keeps_the_head_that_fits(engine):
    engine.forget_all()
    ask = Ask(prompt=random_tokens(7, 3500))
    (first,) = engine.complete(ask)
    engine.forget()

    (second,) = engine.complete(ask)

    assert second.num_cached_tokens == CAPACITY_BLOCKS * 128
    assert first.tokens == second.tokens


def test_blocks_that_are_being_loaded_are_not_evicted(engine, cold):
    """The load begins, and before it copies, others want all the room there is."""
    engine.forget_all()
    engine.complete(ASKS[-1])
    engine.forget()

    (loaded, large) = engine.complete(ASKS[-1], Ask(prompt=random_tokens(8, 3500)))

    assert loaded.num_cached_tokens == 896
    assert cold[tuple(ASKS[-1].prompt)] == loaded.tokens
    assert large.num_cached_tokens == 0


def test_nothing_is_left_behind(engine):
    assert_nothing_leaked(engine)
    assert_reset_gives_everything_back(engine)


class TestFailedCopies(FailedCopies):
    """With little host memory; by eviction policy also by load mode and by failure policy."""
