"""The measure before what is measured: equal tokens of the `oracle` model mean equal KV.

Everything else compares tokens after an external hit with tokens of a cold run. That proves
something only if the engine itself is repeatable across hits of any length, if a small difference
in the KV shows, and if a connector that copies nothing is caught.
"""

import pytest
from engine_process import Ask, EngineFailure, random_tokens

HEAD = random_tokens(1, 1500)
PROMPTS = [HEAD + random_tokens(seed, length) for seed, length in ((2, 37), (3, 300), (4, 701))]


PHANTOM = {"kv_connector": "PhantomConnector", "kv_connector_module_path": "engine_probe"}


@pytest.fixture(scope="module")
def engine(start_engine):
    return start_engine("oracle", connector=PHANTOM, disable_hybrid_kv_cache_manager=True)


@pytest.fixture(scope="module")
def cold(engine):
    completions = []
    for prompt in PROMPTS:
        engine.forget()
        completions += engine.complete(Ask(prompt=prompt))
    return completions


def test_outputs_are_varied_enough_to_compare(cold):
    assert all(len(set(completion.tokens)) > 8 for completion in cold)
    assert len({completion.tokens[0] for completion in cold}) == len(cold)


def test_hits_of_any_length_give_the_tokens_of_a_cold_run(engine, cold):
    engine.forget()
    asks = [Ask(prompt=prompt) for prompt in PROMPTS]

    partial, full = engine.complete_each(asks), engine.complete_each(asks)

    assert [completion.num_cached_tokens for completion in partial] == [0, 1408, 1408]
    assert [completion.num_cached_tokens for completion in full] == [1536, 1792, 2176]
    expected = [completion.tokens for completion in cold]
    assert expected == [completion.tokens for completion in partial]
    assert expected == [completion.tokens for completion in full]


def test_a_recomputed_page_has_the_same_bytes(engine):
    engine.forget()
    engine.complete(Ask(prompt=PROMPTS[0]))
    before = engine.cached_pages(PROMPTS[0])

    engine.forget()
    engine.complete(Ask(prompt=PROMPTS[0]))

    assert len(before) == len(PROMPTS[0]) // 128
    assert before == engine.cached_pages(PROMPTS[0])


def test_one_other_token_at_the_start_changes_every_continuation(engine, cold):
    disturbed = [Ask(prompt=[prompt[0] + 1, *prompt[1:]]) for prompt in PROMPTS]

    for before, after in zip(cold, engine.complete_each(disturbed), strict=True):
        assert before.tokens[:8] != after.tokens[:8]


def test_a_connector_that_copies_nothing_is_caught(engine, cold):
    _assert_lie_shows(engine, cold[0].tokens)


def test_a_connector_that_copies_nothing_is_caught_with_mla(start_engine):
    engine = start_engine("mla", connector=PHANTOM, disable_hybrid_kv_cache_manager=True)
    (truth,) = engine.complete(Ask(prompt=PROMPTS[0]))
    assert len(set(truth.tokens)) > 8
    _assert_lie_shows(engine, truth.tokens)


def test_what_an_engine_raises_fails_the_test_with_its_traceback(start_engine):
    with pytest.raises(EngineFailure, match=r"failed in start(?s:.)*argument 'no_such_option'"):
        start_engine("oracle", no_such_option=1)


def _assert_lie_shows(engine, truth):
    engine.forget()
    (lie,) = engine.complete(Ask(prompt=PROMPTS[0], kv_transfer_params={"lie": True}))
    engine.forget()
    assert lie.num_cached_tokens >= 1536
    assert truth[:8] != lie.tokens[:8]
