"""What must be computed is computed, whatever the cache holds: pooling, prompt log probabilities.

Requests here tell vLLM that caches may be read for them, so that its own question does not stand
in for ours: until 0.30 it asks none before it takes a connector's offer.
"""

import msgspec
import pytest
from engine_checks import external_hit_tokens
from engine_process import Ask, EngineFailure, random_tokens

PROMPT = random_tokens(1, 700)
OTHER = random_tokens(2, 700)
WARM_UP = random_tokens(3, 16)
"""The first step opens the cache: what ends with it is not saved."""

HIT_TOKENS = 640
HIDDEN = 384
READS_CACHES = {"skip_reading_prefix_cache": False}

PLAIN = Ask(prompt=PROMPT, max_tokens=8)
SCORED = Ask(prompt=PROMPT, max_tokens=8, of_the_request=READS_CACHES | {"prompt_logprobs": 0})
EMBED = Ask(prompt=PROMPT, pooling_task="embed", of_the_request=READS_CACHES)
ROWS = Ask(prompt=PROMPT, pooling_task="token_embed", of_the_request=READS_CACHES)
"""An embedding of each token."""

OPEN, UNGATED = (
    {"kv_connector": name, "kv_connector_module_path": "ungated_connector"}
    for name in ("OpenConnector", "UngatedConnector")
)
SMALL = {"kv_connector_extra_config": {"cpu_cache_gb": 0.1}}


@pytest.fixture(scope="module")
def start_pooling(start_engine):
    def start(pooling_type, connector):
        engine = start_engine(
            "oracle",
            connector=connector | SMALL,
            runner="pooling",
            convert="embed",
            pooler_config={"seq_pooling_type": pooling_type},
            max_num_batched_tokens=4096,
        )
        engine.complete(Ask(prompt=WARM_UP, pooling_task="embed"))
        return engine

    return start


@pytest.fixture(scope="module")
def engine(start_engine):
    return start_engine("oracle", connector=OPEN | SMALL, max_num_batched_tokens=300)


def other_prompt(ask):
    return msgspec.structs.replace(ask, prompt=OTHER)


def again(engine, ask):
    """Ask once more, where the engine itself remembers nothing."""
    engine.forget()
    (completion,) = engine.complete(ask)
    return completion


def ungated(engine, ask):
    engine.connector("ask_requests", asks=False)
    completion = again(engine, ask)
    engine.connector("ask_requests", asks=True)
    return completion


def test_log_probabilities_of_a_prompt_are_those_of_an_engine_that_has_cached_nothing(engine):
    (cold,) = engine.complete(SCORED)
    warm = again(engine, SCORED)

    assert again(engine, PLAIN).num_cached_tokens == HIT_TOKENS, "such a request is saved"
    assert len(cold.prompt_logprobs) == len(PROMPT) - 1
    assert warm.prompt_logprobs == pytest.approx(cold.prompt_logprobs, abs=1e-5)
    assert (warm.num_cached_tokens, warm.tokens) == (0, cold.tokens)


def test_without_our_question_log_probabilities_of_a_prompt_are_wrong(engine):
    (cold,) = engine.complete(other_prompt(SCORED))
    wrong = ungated(engine, other_prompt(SCORED))

    assert wrong.num_cached_tokens == HIT_TOKENS
    assert wrong.prompt_logprobs != pytest.approx(cold.prompt_logprobs, abs=1e-2)


@pytest.mark.parametrize("pooling_type", ["MEAN", "CLS"])
def test_an_embedding_of_all_tokens_is_the_same_for_a_repeated_prompt(start_pooling, pooling_type):
    engine = start_pooling(pooling_type, {"kv_connector": "flexkv"})
    (first,) = engine.complete(EMBED)
    second = again(engine, EMBED)
    (other,) = engine.complete(other_prompt(EMBED))

    assert second.num_cached_tokens == 0
    assert len(first.pooled) == HIDDEN
    assert second.pooled == pytest.approx(first.pooled, abs=1e-6)
    assert other.pooled != pytest.approx(first.pooled, abs=1e-2)
    assert f"its {pooling_type} pooling reads more than the last token" in engine.log_text()


def test_without_our_question_a_server_of_such_embeddings_dies(start_pooling):
    engine = start_pooling("MEAN", UNGATED)
    engine.complete(EMBED)

    with pytest.raises(EngineFailure, match="partial prefill is not supported with MEAN pooling"):
        again(engine, EMBED)


@pytest.fixture(scope="module")
def last_token_engine(start_pooling):
    return start_pooling("LAST", OPEN)


def test_an_embedding_of_the_last_token_may_skip_what_is_cached(last_token_engine):
    (first,) = last_token_engine.complete(EMBED)
    before = external_hit_tokens(last_token_engine)
    second = again(last_token_engine, EMBED)

    assert external_hit_tokens(last_token_engine) - before == HIT_TOKENS
    assert second.pooled == pytest.approx(first.pooled, abs=1e-6)


def test_embeddings_of_each_token_are_of_all_of_them(last_token_engine):
    (first,) = last_token_engine.complete(other_prompt(ROWS))
    second = again(last_token_engine, other_prompt(ROWS))

    assert len(first.pooled) == len(OTHER) * HIDDEN
    assert second.pooled == pytest.approx(first.pooled, abs=1e-6)


def test_without_our_question_embeddings_of_tokens_are_missing(last_token_engine):
    last_token_engine.complete(ROWS)

    assert len(ungated(last_token_engine, ROWS).pooled) < len(PROMPT) * HIDDEN
