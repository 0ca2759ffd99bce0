"""One directory for engines of several ranks, for several engines at once, for a server of two."""

from typing import NamedTuple

import pytest
from engine_checks import NO_LOAD
from engine_process import Ask, random_tokens
from http_server import HttpServer, cached_tokens
from ssd_engines import connector_on, flip_byte, keys_of, ready_keys

NUM_PAGES = 4
HIT_TOKENS = NUM_PAGES * 128
FIRST, SECOND, THIRD = (random_tokens(seed, 600) for seed in (21, 22, 23))
TWO_RANKS = {"tensor_parallel_size": 2, "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
HEADS = range(2)


class Served(NamedTuple):
    """What an engine made of a prompt."""

    num_cached_tokens: int
    tokens: list[int]
    heads: list[list[str]]
    """Digests of the KV heads of the whole model, in each page of the prompt."""


def serve(engine, prompt, **more):
    """Serve a prompt by itself, and leave nothing of it in the engine's own prefix cache."""
    (completion,) = engine.complete(Ask(prompt=prompt, **more))
    page_ids = engine.connector("last_page_ids")[:NUM_PAGES]
    ranks = engine.worker_connectors("head_digests", page_ids=page_ids)
    engine.forget()
    heads = [[head for rank in page for head in rank] for page in zip(*ranks, strict=True)]
    return Served(completion.num_cached_tokens, completion.tokens, heads)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("ssd")


@pytest.fixture(scope="module")
def start(start_engine, directory):
    """Return a function that starts an engine which shares the directory with two ranks."""

    def start(**engine_args):
        connector = connector_on(directory, max_tp=2)
        engine = start_engine("oracle", connector=connector, **engine_args)
        engine.run()
        return engine

    return start


def end(engine):
    engine.kill()
    engine.close()


class Neighbours(NamedTuple):
    """What two engines of one rank made of the prompts, the second one started beside the first."""

    first: Served
    second: Served
    first_by_other: Served
    second_by_one: Served
    hits: list[Served]


@pytest.fixture(scope="module")
def neighbours(start):
    one = start()
    first = serve(one, FIRST)
    other = start()
    first_by_other, second = serve(other, FIRST), serve(other, SECOND)
    second_by_one = serve(one, SECOND)
    hits = [serve(engine, prompt) for engine in (one, other) for prompt in (FIRST, SECOND)]
    end(one)
    end(other)
    return Neighbours(first, second, first_by_other, second_by_one, hits)


def test_engines_on_one_directory_see_nothing_of_each_other(neighbours):
    served = neighbours[:-1]
    assert [cold.num_cached_tokens for cold in served] == [0] * 4
    assert neighbours.first_by_other.heads == neighbours.first.heads
    assert neighbours.second_by_one.heads == neighbours.second.heads


def test_engines_on_one_directory_lose_nothing_to_each_other(neighbours):
    assert [hit.num_cached_tokens for hit in neighbours.hits] == [HIT_TOKENS] * 4
    assert [hit.heads for hit in neighbours.hits] == [
        neighbours.first.heads,
        neighbours.second.heads,
    ] * 2


class Pair(NamedTuple):
    """What an engine of two ranks made of the prompts."""

    found: set[str]
    first: Served
    second: Served
    own_first: Served
    third: Served


@pytest.fixture(scope="module")
def pair(start, neighbours):
    engine = start(**TWO_RANKS)
    found = ready_keys(engine)
    first, second = serve(engine, FIRST), serve(engine, SECOND)
    pair = Pair(
        found,
        first,
        second,
        serve(engine, FIRST, kv_transfer_params=NO_LOAD),
        serve(engine, THIRD),
    )
    end(engine)
    return pair


def test_the_next_engine_adopts_what_both_have_left(neighbours, pair):
    assert pair.found == {*keys_of(FIRST), *keys_of(SECOND)}
    assert pair.first.num_cached_tokens == pair.second.num_cached_tokens == HIT_TOKENS


def test_each_rank_of_two_loads_the_heads_that_one_rank_has_written(neighbours, pair):
    assert pair.first.heads == neighbours.first.heads
    assert pair.second.heads == neighbours.second.heads
    heads = [head for page in pair.first.heads for head in page]
    assert len(set(heads)) == NUM_PAGES * len(HEADS)


def test_two_ranks_go_on_as_if_they_had_computed_it(pair):
    assert pair.own_first.num_cached_tokens == 0
    assert pair.first.tokens == pair.own_first.tokens


@pytest.fixture(scope="module")
def single(start, directory, pair):
    """Start an engine of one rank, after a byte of `FIRST` was flipped in the second column."""
    flip_byte(directory, keys_of(FIRST)[2], column="heads-1-1.*")
    return start()


def test_one_rank_loads_the_heads_that_two_have_written(pair, single):
    loaded = serve(single, THIRD)
    own = serve(single, THIRD, kv_transfer_params=NO_LOAD)
    assert (loaded.num_cached_tokens, own.num_cached_tokens) == (HIT_TOKENS, 0)
    assert loaded.heads == pair.third.heads
    assert loaded.tokens == own.tokens


def test_a_byte_of_one_column_would_show_in_its_head_and_page_alone(pair, single):
    single.worker_connectors("trust_disk")
    served = serve(single, FIRST)
    assert served.num_cached_tokens == HIT_TOKENS
    differences = [
        (page, head)
        for page in range(NUM_PAGES)
        for head in HEADS
        if served.heads[page][head] != pair.first.heads[page][head]
    ]
    assert differences == [(2, 1)]


class Answers(NamedTuple):
    """What a server answered, by data-parallel rank."""

    cached: list[int]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def servers(model, tmp_path_factory):
    """Let a server of two engines save a prompt each; then start it again, and ask both of both."""
    directory = tmp_path_factory.mktemp("ssd")
    lives = []
    for prompts in ([FIRST, SECOND], [FIRST, SECOND, SECOND, FIRST]):
        server = two_engines(model, tmp_path_factory, directory)
        if lives:
            server.wait_for("flexkv:restored_blocks", 2 * NUM_PAGES)
        answers = [server.complete(prompt, rank=at % 2) for at, prompt in enumerate(prompts)]
        if not lives:
            server.wait_for("flexkv:demoted_blocks", 2 * NUM_PAGES)
        server.close()
        tokens = [answer["choices"][0]["token_ids"] for answer in answers]
        lives.append(Answers([cached_tokens(answer) for answer in answers], tokens))
    return lives


def two_engines(model, tmp_path_factory, directory):
    options = {"cpu_cache_gb": 0.25, "ssd_cache_gb": 1, "ssd_cache_dir": str(directory)}
    return HttpServer(
        model("oracle"),
        tmp_path_factory.mktemp("server"),
        {"kv_connector": "flexkv", "kv_connector_extra_config": options},
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        data_parallel_size=2,
    )


def test_after_a_restart_one_of_a_servers_engines_has_what_each_had_saved(servers):
    before, after = servers
    assert before.cached == [0, 0]
    for asked in ((0, 3), (1, 2)):
        assert sorted(after.cached[at] for at in asked) == [0, HIT_TOKENS]


def test_the_engines_of_a_server_answer_after_a_restart_as_before(servers):
    before, after = servers
    assert after.tokens == before.tokens + before.tokens[::-1]
