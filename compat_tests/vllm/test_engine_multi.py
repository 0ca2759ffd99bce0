"""Beside another connector in vLLM's MultiConnector: ours first, vLLM's ExampleConnector second.

Ours goes by the name that vLLM has for FlexKV's own.
"""

import msgspec
import pytest
from engine_checks import NO_LOAD, counts
from engine_process import Ask, random_tokens

PROMPT = random_tokens(1, 700)
ASK = Ask(prompt=PROMPT)
HIT_TOKENS = 640


@pytest.fixture(scope="module")
def engine(start_engine, tmp_path_factory):
    ours = {"kv_connector": "FlexKVConnectorV1", "kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
    folder = tmp_path_factory.mktemp("example")
    example = {
        "kv_connector": "ExampleConnector",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    children = [child | {"kv_role": "kv_both"} for child in (ours, example)]
    return start_engine(
        "oracle",
        connector={
            "kv_connector": "MultiConnector",
            "kv_connector_extra_config": {"connectors": children},
        },
        disable_hybrid_kv_cache_manager=True,
        env={"FLEXKV_REPLACE_STOCK_CONNECTOR": "1"},
    )


@pytest.fixture(scope="module")
def cold(engine):
    (completion,) = engine.complete(ASK)
    return completion


@pytest.fixture(autouse=True)
def clean(engine, cold):
    """Both children know the prompt; the engine does not."""
    engine.complete(ASK)
    engine.forget()
    yield
    state = engine.state()
    assert (state["busy"], state["requests"]) == (False, {})
    assert state["num_free_blocks"] == state["num_blocks"] - 1


def test_the_log_says_once_whose_connector_it_is(engine):
    assert engine.log.read_text().count("connector.replaced: ") == 1


def test_the_first_child_that_has_the_prefix_loads_it(engine, cold):
    before = counts(engine)["load_tokens"]

    (loaded,) = engine.complete(ASK)

    assert loaded.num_cached_tokens == HIT_TOKENS
    assert counts(engine)["load_tokens"] - before == HIT_TOKENS
    assert loaded.tokens == cold.tokens


def test_the_other_child_loads_what_we_may_not(engine, cold):
    before = counts(engine)["load_tokens"]

    (loaded,) = engine.complete(msgspec.structs.replace(ASK, kv_transfer_params=NO_LOAD))

    assert loaded.num_cached_tokens == HIT_TOKENS
    assert counts(engine)["load_tokens"] == before
    assert loaded.tokens == cold.tokens


def test_what_the_other_child_has_loaded_is_saved_by_us(engine, cold):
    engine.forget_all()
    before = counts(engine)
    (examples,) = engine.complete(ASK)
    between = counts(engine)
    engine.forget()
    (ours,) = engine.complete(ASK)
    after = counts(engine)

    assert examples.num_cached_tokens == ours.num_cached_tokens == HIT_TOKENS
    assert between["load_tokens"] == before["load_tokens"]
    assert between["save_tokens"] - before["save_tokens"] == HIT_TOKENS
    assert after["load_tokens"] - between["load_tokens"] == HIT_TOKENS
    assert examples.tokens == ours.tokens == cold.tokens


def test_a_local_hit_is_continued_by_us(engine, cold):
    engine.complete(Ask(prompt=PROMPT[:300], max_tokens=1))
    before = counts(engine)["load_tokens"]

    (loaded,) = engine.complete(ASK)

    assert loaded.num_cached_tokens == HIT_TOKENS
    assert counts(engine)["load_tokens"] - before == HIT_TOKENS - 256
    assert loaded.tokens == cold.tokens


def test_a_request_aborted_between_both_children_leaves_nothing(engine, cold):
    engine.abort(engine.add(ASK))
    running = engine.add(ASK)
    engine.step(2)
    engine.abort(running)
    engine.run()

    (after,) = engine.complete(ASK)

    assert after.tokens == cold.tokens
