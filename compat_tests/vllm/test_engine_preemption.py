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
    counts,
)
from engine_process import Ask, random_tokens

NUM_PAGES = 40
ASKS = [Ask(prompt=random_tokens(seed, 700), max_tokens=300) for seed in range(8)]
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


def test_nothing_is_left_behind(engine, crowd):
    assert_nothing_leaked(engine)
    assert_reset_gives_everything_back(engine)
