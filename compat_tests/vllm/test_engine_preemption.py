"""A KV pool that is too small for what runs: requests are preempted, and restored from the host."""

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
NUM_WHOLE_BLOCKS = (700 + 300 - 1) // 128


@pytest.fixture(scope="module")
def engine(start_engine):
    options = {"kv_connector_extra_config": {"cpu_cache_gb": 0.1}}
    return start_engine("oracle", connector=SABOTAGED | options, num_gpu_blocks_override=NUM_PAGES)


@pytest.fixture(scope="module")
def preempted(engine):
    """Serve all at once; return each prompt with its answer, and the metrics of before."""
    before = counts(engine), num_preemptions(engine)
    answers = engine.complete(*ASKS)
    return [a.prompt + c.tokens for a, c in zip(ASKS, answers, strict=True)], before


def num_preemptions(engine):
    return engine.metrics()["vllm:num_preemptions_total"]
