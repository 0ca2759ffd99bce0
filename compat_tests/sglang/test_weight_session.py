"""Weights that others write into SGLang's memory: it is told when they begin, and when they end."""

import random

import pytest
from engine_steps import wait_until_stored
from sglang.srt.managers import io_struct
from sglang_process import PAGE_TOKENS, flexkv

NUM_TOKENS = 1000
HIT_TOKENS = NUM_TOKENS // PAGE_TOKENS * PAGE_TOKENS

pytestmark = pytest.mark.skipif(
    not hasattr(io_struct, "BeginWeightUpdateReqInput"), reason="there is none before 0.5.21"
)


def prompt_of(seed):
    return random.Random(seed).choices(range(400), k=NUM_TOKENS)


@pytest.fixture
def start(start_engine, model, tmp_path):
    """Start engines on one directory, each after the end of the one before."""
    return lambda: start_engine(model("oracle"), flexkv(tmp_path / "ssd"))


def test_the_end_of_a_session_that_nobody_opened_forgets_nothing(start):
    prompt = prompt_of(1)
    engine = start()
    engine.complete(prompt)
    wait_until_stored(engine, prompt)
    engine.end_weight_update()
    engine.flush()
    assert engine.complete(prompt).num_from_storage == HIT_TOKENS


def test_what_was_computed_before_or_while_others_write_the_weights_is_not_found_afterwards(start):
    before, meanwhile = prompt_of(1), prompt_of(2)
    engine = start()
    former = engine.complete(before)
    wait_until_stored(engine, before)

    engine.begin_weight_update()
    engine.double_weights("qkv_proj")
    engine.complete(meanwhile)
    engine.end_weight_update()
    engine.flush()
    later = [engine.complete(prompt) for prompt in (before, meanwhile)]
    assert [answer.num_cached_tokens for answer in later] == [0, 0]
    assert later[0].tokens != former.tokens
    wait_until_stored(engine, before)  # under the weights of now, it is found again

    engine = start()
    again = engine.complete(before)
    assert (again.num_from_storage, again.tokens) == (HIT_TOKENS, former.tokens)
    assert engine.complete(meanwhile).num_cached_tokens == 0
