"""Adapters change KV without changing tokens: what they share is decided by their content."""

import shutil

import pytest
from engine_process import Ask, random_tokens

PROMPT = random_tokens(21, 700)
HIT_TOKENS = 640


@pytest.fixture(scope="module")
def engine(start_engine):
    connector = {"kv_connector": "flexkv", "kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
    return start_engine(
        "oracle", connector=connector, enable_lora=True, max_loras=2, max_lora_rank=8
    )


@pytest.fixture(scope="module")
def adapters(model):
    return [str(model(name)) for name in ("lora-1", "lora-2")]


@pytest.fixture(scope="module")
def cold(engine, adapters):
    """The base model, then each adapter, on a prompt that all of them have saved afterwards."""
    return engine.complete_each(Ask(prompt=PROMPT, lora=lora) for lora in (None, *adapters))


def test_nobody_hits_the_prefix_of_another_adapter_or_of_the_base(cold):
    assert [completion.num_cached_tokens for completion in cold] == [0, 0, 0]


def test_adapters_really_change_the_answer(cold):
    assert len({tuple(completion.tokens[:4]) for completion in cold}) == 3


def test_everybody_hits_their_own_and_answers_as_before(engine, adapters, cold):
    engine.forget()
    again = engine.complete_each(Ask(prompt=PROMPT, lora=lora) for lora in (None, *adapters))

    assert [completion.num_cached_tokens for completion in again] == [HIT_TOKENS] * 3
    assert [completion.tokens for completion in again] == [completion.tokens for completion in cold]


def test_a_copy_of_an_adapter_under_another_name_hits_what_the_original_saved(
    engine, adapters, cold, tmp_path
):
    copy = shutil.copytree(adapters[0], tmp_path / "renamed")
    engine.forget()

    (completion,) = engine.complete(Ask(prompt=PROMPT, lora=str(copy)))

    assert completion.num_cached_tokens == HIT_TOKENS
    assert completion.tokens == cold[1].tokens
