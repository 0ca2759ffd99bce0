"""Tokens whose logarithms are asked for are computed, also where the storage has their KV."""

import math
import random

import pytest
from engine_steps import wait_until_stored
from sglang_process import PAGE_TOKENS, EngineFailure, flexkv

NUM_TOKENS = 1000
START = 300
PROMPT = random.Random(3).choices(range(400), k=NUM_TOKENS)


@pytest.fixture
def start(start_engine, model, tmp_path):
    return lambda **arguments: start_engine(model("oracle"), flexkv(tmp_path / "ssd"), **arguments)


@pytest.mark.parametrize("first", [0, START])
def test_logarithms_of_a_stored_prompt_are_those_of_a_computed_one(start, first):
    asked = {"return_logprob": True, "logprob_start_len": first}
    engine = start()
    cold = engine.complete(PROMPT, 4, **asked)
    assert len(cold.prompt_logprobs) == NUM_TOKENS - first
    wait_until_stored(engine, PROMPT)

    engine.flush()
    again = engine.complete(PROMPT, 4, **asked)
    assert again.num_from_storage == first // PAGE_TOKENS * PAGE_TOKENS
    assert again.tokens == cold.tokens
    assert all(map(is_close, cold.prompt_logprobs, again.prompt_logprobs))


def is_close(one, other):
    return one == other or math.isclose(one, other, abs_tol=1e-3)


def test_a_prompt_with_an_embedding_of_its_own_leaves_nothing_for_its_tokens(start):
    engine = start()
    engine.complete_with_noise(PROMPT, 5)
    assert engine.complete(PROMPT, 4).num_cached_tokens == 0
    assert engine.complete(PROMPT, 4).num_cached_tokens > 0


def test_an_engine_that_serves_embeddings_is_refused(start):
    with pytest.raises(EngineFailure, match="made of every token"):
        start(is_embedding=True)
