"""KV leaves a real engine for host memory and comes back: the same tokens, and the same bytes.

One engine, asynchronous loads, chunks that end inside blocks.
"""

import msgspec
import pytest
from engine_checks import (
    NO_LOAD,
    PAGE_BYTES,
    PAGE_TOKENS,
    SABOTAGED,
    assert_nothing_leaked,
    break_copies,
    counts,
    external_hit_tokens,
)
from engine_process import Ask, random_tokens

HEAD = random_tokens(1, 1000)
PROMPTS = [HEAD + random_tokens(seed, length) for seed, length in ((2, 37), (3, 300), (4, 701))]
ASKS = [Ask(prompt=prompt) for prompt in PROMPTS]
HEAD_TOKENS = len(HEAD) // PAGE_TOKENS * PAGE_TOKENS
HIT_TOKENS = [len(prompt) // PAGE_TOKENS * PAGE_TOKENS for prompt in PROMPTS]


@pytest.fixture(scope="module")
def engine(start_engine):
    options = {"kv_connector_extra_config": {"cpu_cache_gb": 0.5}}
    return start_engine("oracle", connector=SABOTAGED | options, max_num_batched_tokens=600)


@pytest.fixture(scope="module")
def cold(engine):
    completions = []
    for ask in ASKS:
        engine.forget_all()
        completions += engine.complete(ask)
    assert cached(completions) == [0, 0, 0]
    return completions


@pytest.fixture
def saved(engine):
    """Host memory holds every prompt, the engine none."""
    engine.complete_each([Ask(prompt=prompt, max_tokens=1) for prompt in PROMPTS])
    engine.forget()


@pytest.fixture
def mended(engine):
    """Whatever the test does to copies ends with it."""
    yield
    break_copies(engine)


def cached(completions):
    return [completion.num_cached_tokens for completion in completions]


def tokens(completions):
    return [completion.tokens for completion in completions]


def test_the_first_request_right_after_the_start_is_saved(engine):
    ask = Ask(prompt=random_tokens(5, 700))
    (first,) = engine.complete(ask)
    engine.forget()

    (second,) = engine.complete(ask)

    assert second.num_cached_tokens == 640
    assert first.tokens == second.tokens


def test_the_cold_outputs_are_varied_enough_to_compare(cold):
    assert all(len(set(completion.tokens)) > 8 for completion in cold)
    assert len({completion.tokens[0] for completion in cold}) == len(cold)


def test_cold_local_and_host_hits_give_the_same_tokens(engine, cold):
    engine.forget_all()
    first = engine.complete_each(ASKS)
    local = engine.complete_each(ASKS)
    engine.forget()
    before = external_hit_tokens(engine)
    mixed = engine.complete_each(ASKS)
    from_host = external_hit_tokens(engine) - before

    assert cached(first) == [0, HEAD_TOKENS, HEAD_TOKENS]
    assert HIT_TOKENS == cached(local) == cached(mixed)
    assert sum(HIT_TOKENS) - 2 * HEAD_TOKENS == from_host
    assert tokens(cold) == tokens(first) == tokens(local) == tokens(mixed)


def test_a_hit_that_comes_from_host_memory_alone_gives_the_tokens_of_a_cold_run(
    engine, cold, saved
):
    before = external_hit_tokens(engine)
    loaded = []
    for ask in ASKS:
        engine.forget()
        loaded += engine.complete(ask)

    assert cached(loaded) == HIT_TOKENS
    assert sum(HIT_TOKENS) == external_hit_tokens(engine) - before
    assert tokens(cold) == tokens(loaded)


def test_requests_that_load_at_the_same_time_get_their_own_bytes(engine, cold, saved):
    loaded = engine.complete(*ASKS)

    assert cached(loaded) == HIT_TOKENS
    assert tokens(cold) == tokens(loaded)


def test_loaded_pages_hold_the_bytes_that_were_computed(engine):
    engine.forget_all()
    for ask in ASKS:
        engine.complete(ask)
    computed = [engine.cached_pages(prompt) for prompt in PROMPTS]

    engine.forget()
    for ask in ASKS:
        engine.complete(ask)

    assert [len(pages) * PAGE_TOKENS for pages in computed] == HIT_TOKENS
    assert computed == [engine.cached_pages(prompt) for prompt in PROMPTS]


def test_spoiled_host_memory_changes_tokens_and_bytes(engine, cold, saved):
    truth = load(engine, ASKS[1])
    engine.worker_connectors("spoil")
    lie = load(engine, ASKS[1])
    engine.worker_connectors("spoil")  # flips every bit back
    healed = load(engine, ASKS[1])

    assert (cold[1].tokens, HIT_TOKENS[1]) == (truth[0].tokens, lie[0].num_cached_tokens)
    assert cold[1].tokens[:8] != lie[0].tokens[:8]
    assert all(a != b for a, b in zip(truth[1], lie[1], strict=True))
    assert truth == healed


def test_loads_that_are_only_pretended_change_tokens_and_bytes(engine, cold, saved, mended):
    truth = load(engine, ASKS[1])
    break_copies(engine, loads="skip")
    lie = load(engine, ASKS[1])

    assert HIT_TOKENS[1] == lie[0].num_cached_tokens
    assert cold[1].tokens[:8] != lie[0].tokens[:8]
    assert all(a != b for a, b in zip(truth[1], lie[1], strict=True))


def test_saves_that_are_only_pretended_change_tokens(engine, cold, mended):
    engine.forget_all()
    engine.worker_connectors("spoil")  # else the slots might still hold what belongs there
    break_copies(engine, saves="skip")
    engine.complete(ASKS[1])

    lie, _ = load(engine, ASKS[1])
    engine.forget_all()

    assert HIT_TOKENS[1] == lie.num_cached_tokens
    assert cold[1].tokens[:8] != lie.tokens[:8]


def load(engine, ask):
    """Serve `ask` from host memory alone; return its completion and its pages."""
    engine.forget()
    (completion,) = engine.complete(ask)
    return completion, engine.cached_pages(ask.prompt)


def test_a_conversation_never_seen_hits_what_it_shares_with_another(engine, cold):
    engine.forget_all()
    engine.complete(ASKS[0])
    engine.forget()

    (other,) = engine.complete(ASKS[2])

    assert other.num_cached_tokens == HEAD_TOKENS
    assert cold[2].tokens == other.tokens


@pytest.mark.parametrize("num_tokens", [127, 128, 129, 255, 256, 257, 640])
def test_every_whole_block_of_a_prompt_is_hit_and_no_more(engine, saved, num_tokens):
    ask = Ask(prompt=PROMPTS[0][:num_tokens], max_tokens=8)

    (loaded,) = engine.complete(ask)
    engine.forget()
    (recomputed,) = engine.complete(msgspec.structs.replace(ask, kv_transfer_params=NO_LOAD))

    assert recomputed.num_cached_tokens == 0
    assert num_tokens // PAGE_TOKENS * PAGE_TOKENS == loaded.num_cached_tokens
    assert recomputed.tokens == loaded.tokens


def test_the_last_block_of_an_aligned_prompt_comes_from_host_memory(engine, saved):
    """The engine's own hit leaves one token to compute, and so a whole block; ours does not."""
    ask = Ask(prompt=PROMPTS[0][:512], max_tokens=8)
    (loaded,) = engine.complete(ask)
    pages = engine.cached_pages(ask.prompt)
    before = external_hit_tokens(engine)

    (again,) = engine.complete(ask)

    assert (loaded.num_cached_tokens, again.num_cached_tokens) == (512, 512)
    assert external_hit_tokens(engine) - before == PAGE_TOKENS
    assert loaded.tokens == again.tokens
    assert pages[:3] == engine.cached_pages(ask.prompt)[:3], "the last one holds a new last token"


def test_generated_tokens_are_saved_for_the_next_turn(engine):
    engine.forget_all()
    question = random_tokens(6, 200)
    (answer,) = engine.complete(Ask(prompt=question, max_tokens=190))
    turn = Ask(prompt=question + answer.tokens + random_tokens(7, 60))
    digests = engine.cached_pages(turn.prompt)
    engine.forget()

    (second,) = engine.complete(turn)
    loaded = engine.cached_pages(turn.prompt)
    engine.forget_all()
    (recomputed,) = engine.complete(turn)

    assert second.num_cached_tokens == 384
    assert len(digests) == 3
    assert digests == loaded[:3]
    assert recomputed.tokens == second.tokens


def test_an_answer_that_ends_on_a_block_boundary_does_not_save_its_last_token(engine):
    """The token sampled last was never fed back: its KV does not exist."""
    engine.forget_all()
    question = random_tokens(8, 200)
    (answer,) = engine.complete(Ask(prompt=question, max_tokens=56))
    engine.forget()

    (second,) = engine.complete(Ask(prompt=question + answer.tokens + [1]))

    assert len(question + answer.tokens) == 256
    assert second.num_cached_tokens == PAGE_TOKENS


def test_metrics_count_what_was_moved(engine, cold):
    engine.forget_all()
    start = counts(engine)
    engine.complete(ASKS[0])
    after_save = counts(engine)
    engine.forget()
    engine.complete(ASKS[0])
    after_load = counts(engine)
    engine.forget_all()
    engine.complete(Ask(prompt=random_tokens(9, 10), max_tokens=1))
    after_reset = counts(engine)

    num_blocks = HIT_TOKENS[0] // PAGE_TOKENS
    num_bytes = num_blocks * PAGE_BYTES
    assert changes(start, after_save, "save") == (HIT_TOKENS[0], num_bytes, 0)
    assert changes(start, after_save, "load") == (0, 0, 0)
    assert after_save["match_miss"] == start["match_miss"] + 1
    assert num_blocks == after_save["host_used_blocks"]
    assert changes(after_save, after_load, "load") == (HIT_TOKENS[0], num_bytes, 0)
    assert changes(after_save, after_load, "save") == (0, 0, 0)
    assert after_load["match_hit_blocks"] == after_save["match_hit_blocks"] + num_blocks
    assert after_load["save_seconds"] > start["save_seconds"]
    assert after_load["load_seconds"] > after_save["load_seconds"]
    assert after_reset["reset"] == after_load["reset"] + 1
    assert (after_reset["host_used_blocks"], after_reset["switched_off"]) == (0, 0)
    assert after_reset["host_capacity_blocks"] == 2**29 // PAGE_BYTES
    assert 0 == after_reset["evicted_blocks"] == after_reset["late_results"]


def changes(before, after, direction):
    names = [f"{direction}_{unit}" for unit in ("tokens", "bytes", "failed_blocks")]
    return tuple(after[name] - before[name] for name in names)


@pytest.mark.usefixtures("sources")
def test_vllm_says_that_the_hits_come_from_host_memory(engine, cold, saved):
    source = "vllm:prompt_tokens_cached_by_source_total{source=host}"
    before = engine.metrics().get(source, 0)

    engine.complete(ASKS[0])

    assert HIT_TOKENS[0] == engine.metrics()[source] - before


def test_nothing_is_left_behind(engine):
    assert_nothing_leaked(engine)
