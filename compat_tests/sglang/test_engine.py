"""Real SGLang on a CPU: what it stored outlives it, and what is not right is computed again."""

import random
from pathlib import Path

import pytest
from engine_steps import wait_until_restored, wait_until_stored, with_other_weights
from sglang.srt.mem_cache import hicache_storage
from sglang_process import PAGE_TOKENS, flexkv

NUM_TOKENS = 1000
HIT_TOKENS = NUM_TOKENS // PAGE_TOKENS * PAGE_TOKENS


def prompt_of(seed):
    return random.Random(seed).choices(range(400), k=NUM_TOKENS)


@pytest.fixture
def start(start_engine, model, tmp_path):
    """Start engines on one directory, each after the end of the one before."""
    return lambda env=None, arguments=None, **options: start_engine(
        model("oracle"), flexkv(tmp_path / "ssd", **options), env=env, **(arguments or {})
    )


def damage(directory):
    for slab in directory.rglob("*.slab"):
        with slab.open("r+b") as file:
            for offset in range(4096 + 4096 + 100, slab.stat().st_size, 4096):
                file.seek(offset)
                file.write(b"damage")


@pytest.mark.parametrize("block_format", ["cells", "native"])
def test_a_killed_engine_leaves_its_pages_and_damaged_ones_are_computed_again(
    start, tmp_path, block_format
):
    prompt = prompt_of(1)
    engine = start(block_format=block_format)
    cold = engine.complete(prompt)
    assert cold.num_cached_tokens == 0
    wait_until_stored(engine, prompt)
    engine.kill()

    warm = start(block_format=block_format).complete(prompt)
    assert warm.num_from_storage == HIT_TOKENS
    assert warm.tokens == cold.tokens

    engine = start(block_format=block_format)
    damage(tmp_path / "ssd")
    again = engine.complete(prompt)
    assert again.num_from_storage == 0
    assert again.tokens == cold.tokens


@pytest.fixture
def injector():
    """Skip the test where SGLang has none: before 0.5.23."""
    if "injector enabled" not in Path(hicache_storage.__file__).read_text():
        pytest.skip("this SGLang cannot let its storage fail")


@pytest.mark.usefixtures("injector")
@pytest.mark.parametrize(
    ("fault", "limit", "block_format"),
    [("FAILURE", "0.3", "cells"), ("DELAY", "0.5", "native")],  # of calls; seconds
)
def test_answers_stay_the_same_under_sglangs_own_failure_injector(
    start, fault, limit, block_format
):
    # What comes late is not waited for, while it is on its way into SGLang's pages.
    engine = start(
        {f"SGLANG_TEST_HICACHE_BACKEND_RANDOM_{fault}": limit},
        {"hicache_storage_prefetch_policy": "best_effort"},
        block_format=block_format,
    )
    prompts = [prompt_of(seed) for seed in range(3)]
    cold = [engine.complete(prompt).tokens for prompt in prompts]
    for _ in range(4):
        engine.flush()
        assert [engine.complete(prompt).tokens for prompt in prompts] == cold
    assert "injector enabled" in engine.log_text()


def test_pages_of_former_weights_are_never_found_again(start, model, tmp_path):
    prompt = prompt_of(1)
    engine = start()
    former = engine.complete(prompt)
    wait_until_stored(engine, prompt)
    engine.update_weights(with_other_weights(model("oracle"), tmp_path / "other", "k_proj"))
    later = engine.complete(prompt)
    assert later.num_cached_tokens == 0
    assert later.tokens != former.tokens
    wait_until_stored(engine, prompt)

    engine = start()
    again = engine.complete(prompt)
    assert again.num_from_storage == HIT_TOKENS
    assert again.tokens == former.tokens


def test_an_update_of_weights_that_sglang_refuses_forgets_nothing(start, tmp_path):
    before, after = prompt_of(1), prompt_of(2)
    engine = start()
    engine.complete(before)
    wait_until_stored(engine, before)
    with pytest.raises(AssertionError, match="refused"):
        engine.update_weights(tmp_path / "nothing")
    engine.flush()
    assert engine.complete(before).num_from_storage == HIT_TOKENS
    engine.complete(after)
    wait_until_stored(engine, after)

    engine = start()
    wait_until_restored(engine)
    assert [engine.complete(prompt, 1).num_from_storage for prompt in (before, after)] == [
        HIT_TOKENS,
        HIT_TOKENS,
    ]


def test_an_operator_empties_detaches_and_attaches_the_storage_while_it_serves(start, tmp_path):
    prompt = prompt_of(1)
    engine = start(arguments={"enable_metrics": True})  # which are registered once in a process
    tokens = engine.complete(prompt).tokens
    wait_until_stored(engine, prompt)
    engine.clear()
    engine.flush()
    assert engine.complete(prompt).num_cached_tokens == 0
    wait_until_stored(engine, prompt)

    engine.detach()
    engine.flush()
    without = engine.complete(prompt)
    assert (without.num_cached_tokens, without.tokens) == (0, tokens)

    engine.attach(flexkv(tmp_path / "ssd"))
    wait_until_stored(engine, prompt)  # or until what was stored has been found again
    assert engine.complete(prompt).tokens == tokens


def test_what_follows_pages_that_were_never_offered_is_found_again(start, tmp_path):
    """SGLang offers a page once: not those that it had when the storage was attached."""
    begin = prompt_of(1)
    prompt = begin[:HIT_TOKENS] + prompt_of(2)[: PAGE_TOKENS * 8 + 1]
    engine = start()
    wait_until_restored(engine)
    engine.detach()
    engine.complete(begin)
    engine.attach(flexkv(tmp_path / "ssd"))
    wait_until_restored(engine, 2)  # before, what is offered is not stored
    tokens = engine.complete(prompt).tokens
    engine.detach()  # only when all is stored
    engine.kill()

    engine = start()
    wait_until_restored(engine)
    assert engine.complete(begin).num_from_storage == 0
    behind = engine.complete(prompt)
    assert (behind.num_from_storage, behind.tokens) == (PAGE_TOKENS * 8, tokens)
    wait_until_stored(engine, prompt)  # with what is before it, now that this was offered
    assert engine.complete(prompt).tokens == tokens


def test_what_the_storage_has_done_is_among_sglangs_metrics(start):
    engine = start(arguments={"enable_metrics": True})
    wait_until_stored(engine, prompt_of(1))
    engine.complete(prompt_of(2), 1)  # SGLang asks the storage at the steps of its scheduler
    metrics = engine.metrics()
    assert metrics["flexkv:save_bytes_total"] >= metrics["flexkv:load_bytes_total"] > 0
    assert metrics["flexkv:ssd_used_blocks"] >= HIT_TOKENS // PAGE_TOKENS
    assert metrics["sglang:prefetch_pgs_sum"] >= HIT_TOKENS // PAGE_TOKENS
    assert metrics["sglang:backup_bandwidth_count"] > 0


def test_one_rank_goes_on_from_what_two_have_stored(start):
    prompt = prompt_of(1)
    env = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}  # a core for each rank
    engine = start(env, {"tp_size": 2}, max_tp=2)
    cold = engine.complete(prompt, 4)
    wait_until_stored(engine, prompt)
    engine.kill()

    warm = start(max_tp=2).complete(prompt, 4)
    assert warm.num_from_storage == HIT_TOKENS
    assert warm.tokens == cold.tokens
