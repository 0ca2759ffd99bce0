"""A KV pool too small for what runs: requests are preempted, and come back from host memory.

Equal tokens prove nothing here, since rounding depends on who shares a batch. So the bytes are
compared, with what an engine without any cache computes for the same tokens: equal but for
rounding, where a wrong page would differ by as much as the values themselves.
"""

import pytest
from engine_checks import (
    SABOTAGED,
    assert_nothing_leaked,
    assert_reset_gives_everything_back,
    break_copies,
    counts,
)
from engine_process import Ask, random_tokens

NUM_PAGES = 40
ASKS = [Ask(prompt=random_tokens(seed, 700), max_tokens=300) for seed in range(8)]
PROMPT = random_tokens(10, 640)
FIRST, SECOND = (Ask(prompt=PROMPT + random_tokens(seed, 60)) for seed in (12, 13))
WHOLE_TOKENS = (700 + 300 - 1) // 128 * 128


@pytest.fixture(scope="module")
def engine(start_engine):
    options = {"kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
    return start_engine("oracle", connector=SABOTAGED | options, num_gpu_blocks_override=NUM_PAGES)


@pytest.fixture(scope="module")
def crowd(engine):
    """Serve all at once; return their sequences, and by how much the metrics have grown."""
    before = {**counts(engine), "preemptions": num_preemptions(engine)}
    answers = engine.complete(*ASKS)
    after = {**counts(engine), "preemptions": num_preemptions(engine)}
    sequences = [a.prompt + c.tokens for a, c in zip(ASKS, answers, strict=True)]
    return sequences, {name: after[name] - before[name] for name in before}


def num_preemptions(engine):
    return engine.metrics()["vllm:num_preemptions_total"]


def test_requests_are_preempted_and_restored_from_host_memory(crowd):
    sequences, growth = crowd

    assert {1000} == {len(sequence) for sequence in sequences}
    assert growth["preemptions"] > 0
    assert growth["load_tokens"] > 0
    assert growth["load_failed_blocks"] == growth["save_failed_blocks"] == 0


def test_what_was_saved_and_restored_is_what_the_engine_computes(engine, crowd):
    sequences, _ = crowd
    for sequence in sequences:
        engine.forget()
        (restored,) = engine.complete(Ask(prompt=sequence, max_tokens=1))
        engine.remember_pages(sequence)
        engine.forget()
        no_load = {"flexkv": {"load": False}}
        engine.complete(Ask(prompt=sequence, max_tokens=1, kv_transfer_params=no_load))

        assert restored.num_cached_tokens == WHOLE_TOKENS
        differences = engine.page_differences(sequence)
        assert len(differences) == WHOLE_TOKENS // 128
        assert max(differences) < 1e-3


@pytest.fixture
def full(engine):
    """Host memory holds PROMPT; in the engine others leave room for one such request, not two."""
    engine.forget_all()
    engine.complete(Ask(prompt=PROMPT, max_tokens=1))
    engine.forget()
    others = engine.add(Ask(prompt=random_tokens(11, 3900), max_tokens=150))
    engine.step(3)
    assert 6 <= engine.state()["num_free_blocks"] < 12
    yield
    engine.abort(others)
    break_copies(engine)
    engine.run()
    assert_nothing_leaked(engine)


@pytest.fixture(scope="module")
def cold(engine):
    engine.forget_all()
    return [c.tokens for c in engine.complete_each([FIRST, SECOND])]


def wait_for_room(engine):
    """Return a request that loads, and one that was offered the same hit and has no room."""
    break_copies(engine, loads="hold")
    loading, waiting = engine.add(FIRST), engine.add(SECOND)
    engine.step(3)
    states = engine.state()["requests"]
    assert (states[loading], states[waiting]) == ("WAITING_FOR_REMOTE_KVS", "WAITING")
    return loading, waiting


def test_a_request_that_waits_for_room_keeps_its_hit(engine, cold, full):
    loading, waiting = wait_for_room(engine)
    break_copies(engine)

    finished = engine.run()

    assert cold == [finished[loading].tokens, finished[waiting].tokens]
    assert finished[waiting].num_cached_tokens == 640


@pytest.mark.parametrize("what", ["failed load", "reset"])
def test_a_request_that_waits_for_room_survives_that_its_hit_is_dropped(engine, cold, full, what):
    """Its offer was not taken yet, so nobody is wronged when it is taken back."""
    loading, waiting = wait_for_room(engine)
    if what == "reset":
        engine.connector("reset_cache")
        engine.abort(loading)  # else its pages would be a hit in the engine itself
        break_copies(engine)
    else:
        break_copies(engine, loads="fail")

    assert engine.run()[waiting].tokens == cold[1]


def test_a_request_that_is_aborted_while_it_waits_for_room_keeps_no_lease(engine, cold, full):
    loading, waiting = wait_for_room(engine)
    engine.abort(waiting)
    engine.abort(loading)
    break_copies(engine)
    engine.run()

    assert engine.connector("audit")["num_claims"] == 0


def test_nothing_is_left_behind(engine, crowd):
    assert_nothing_leaked(engine)
    assert_reset_gives_everything_back(engine)
