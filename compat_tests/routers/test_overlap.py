"""Dynamo's indexer counts in each tier what vLLM and FlexKV have there."""

import random

import msgspec
import pytest
from prompts import NUM_TOKENS, OTHERS, PROMPT, prompt_of

SMALL_SSD_GB = 24 * 8192 / 2**30
"""Room for four prompts: the file of a block of 64 tokens has a page of header."""
GEOMETRIES = [(page, block) for page in (16, 32, 64) for block in (64, 128)]


def without_tokens(event):
    return msgspec.structs.replace(event, token_ids=[])


def with_foreign_names(event):
    names = [name ^ 1 for name in event.block_hashes]
    return msgspec.structs.replace(event, block_hashes=names)


def with_pages_of_twice_the_size(event):
    return msgspec.structs.replace(event, block_size=2 * event.block_size)


@pytest.mark.parametrize(("page_tokens", "block_tokens"), GEOMETRIES)
def test_a_prompt_that_vllm_has_in_part_counts_on_in_host_memory(start, page_tokens, block_tokens):
    engine = start(page_tokens, block_tokens)
    engine.serve(PROMPT, OTHERS[0])
    has = engine.has(PROMPT)
    assert 0 < has.gpu < has.cpu == 384
    assert engine.told(PROMPT) == has


@pytest.mark.parametrize(("page_tokens", "block_tokens"), GEOMETRIES)
def test_a_prompt_that_vllm_has_no_more_counts_in_host_memory(start, page_tokens, block_tokens):
    engine = start(page_tokens, block_tokens)
    engine.serve(PROMPT, *OTHERS[:2])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 384, 384)


@pytest.mark.parametrize(("page_tokens", "block_tokens"), GEOMETRIES)
def test_a_prompt_that_is_nowhere_else_counts_on_ssd(start_with_ssd, page_tokens, block_tokens):
    engine = start_with_ssd(page_tokens=page_tokens, block_tokens=block_tokens)
    engine.serve(PROMPT, *OTHERS[:3])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 0, 384)


def test_what_has_left_host_memory_does_not_count(start):
    engine = start(cpu_blocks=8)
    engine.serve(PROMPT, *OTHERS[:3])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 0, 0)
    assert engine.told(OTHERS[1]) == engine.has(OTHERS[1])


def test_what_has_left_ssd_does_not_count(start_with_ssd):
    engine = start_with_ssd(ssd_cache_gb=SMALL_SSD_GB)
    engine.serve(PROMPT, *OTHERS)
    prompts = [PROMPT, *OTHERS]
    has = [engine.has(prompt) for prompt in prompts]
    assert {(0, 0, 0), (0, 0, 384)} <= set(has), "some have left, some have not"
    assert [engine.told(prompt) for prompt in prompts] == has


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_served_the_indexer_knows_what_is_where(start_with_ssd, seed):
    rng = random.Random(seed)
    engine = start_with_ssd(ssd_cache_gb=SMALL_SSD_GB)
    heads = [prompt_of(f"{seed} {head}") for head in range(6)]
    prompts = [
        head[:cut] + prompt_of(f"{seed} {cut}", 400 - cut)
        for head in heads
        for cut in (96, 250, 400)
    ]
    for _ in range(30):
        engine.serve(rng.choice(prompts))
        prompt = rng.choice(prompts)
        assert engine.told(prompt) == engine.has(prompt)
    assert [engine.told(prompt) for prompt in prompts] == [*map(engine.has, prompts)]


def test_two_workers_are_told_apart(start):
    first, second = engines = [start(model="shared") for _ in range(2)]
    first.serve(PROMPT, *OTHERS[:2])
    second.serve(OTHERS[0])
    for engine in engines:
        for prompt in (PROMPT, OTHERS[0]):
            assert engine.told(prompt) == engine.has(prompt)
    assert first.told(PROMPT) != second.told(PROMPT)


def test_blocks_of_an_earlier_process_count_once_a_request_has_brought_their_tokens(start_with_ssd):
    engine = start_with_ssd(cpu_blocks=16)
    engine.serve(PROMPT)
    engine.restart()
    assert engine.told(PROMPT) == (0, 0, 0)
    engine.serve(PROMPT, *OTHERS)
    assert engine.engine.events["external tokens"] == 384, "no block of it was saved again"
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 0, 384)


def test_a_lost_batch_is_replayed(start):
    from indexer import LossySocket

    engine = start()
    socket = LossySocket(engine.publisher)
    socket.lose_next()
    engine.serve(PROMPT, *OTHERS[:2])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 384, 384)
    assert not socket.num_to_lose


def test_a_reset_of_our_cache_leaves_what_vllm_has(start):
    engine = start()
    engine.serve(PROMPT)
    assert engine.connector.reset_cache()
    engine.serve(OTHERS[0])
    has = engine.has(PROMPT)
    assert 0 < has.gpu == has.cpu < NUM_TOKENS
    assert engine.told(PROMPT) == has
    engine.serve(OTHERS[1])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 0, 0)


def test_what_we_keep_through_a_reset_of_vllm_counts_once_a_request_brings_its_tokens(start):
    engine = start()
    engine.serve(PROMPT)
    assert engine.engine.reset(running=False, connector=False)
    engine.serve(*OTHERS[:2])
    assert engine.told(PROMPT) == (0, 0, 0), "vLLM has cleared all tiers"
    engine.serve(PROMPT, *OTHERS[:2])
    assert engine.told(PROMPT) == engine.has(PROMPT) == (0, 384, 384)


def test_an_adapter_has_blocks_of_its_own(start, tmp_path):
    from half_rig import know, lora, write_adapter

    engine, adapter = start(), lora(write_adapter(tmp_path / "adapter", b"weights"))
    engine.serve(OTHERS[0], lora=adapter)
    know(engine.connector._scheduler._adapters)
    engine.serve(PROMPT, *OTHERS[:2], lora=adapter)
    assert engine.told(PROMPT, lora_name=adapter.lora_name) == (0, 384, 384)
    assert engine.told(PROMPT) == (0, 0, 0)


def test_blocks_with_a_salt_count_as_vllms_own_do(start):
    """The indexer does not read the salt: it counts them for requests without it only."""
    engine = start()
    engine.serve(PROMPT, salt="salt")
    assert engine.told(PROMPT) == (400, 400, 400)
    engine.serve(*OTHERS[:2])
    assert engine.told(PROMPT) == (0, 384, 384)
    assert engine.told(PROMPT, cache_salt="salt") == (0, 0, 0)


SPOILS = [without_tokens, with_foreign_names, with_pages_of_twice_the_size]


@pytest.mark.parametrize("spoil", SPOILS)
def test_other_events_of_ours_would_not_count(start, spoil):
    engine = start()
    take = engine.connector.take_events
    engine.connector.take_events = lambda: [spoil(event) for event in take()]
    engine.serve(PROMPT, OTHERS[0])
    has, told = engine.has(PROMPT), engine.told(PROMPT)
    assert told.gpu == told.cpu == has.gpu < has.cpu
