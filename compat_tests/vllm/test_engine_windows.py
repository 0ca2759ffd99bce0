"""Models with sliding windows in a session: their KV of all tokens, killed, restarted, damaged."""

from typing import NamedTuple

import pytest
from engine_process import Ask, Completion, EngineProcess, random_tokens
from offload_engines import flip_all, hits_of, tokens_of
from ssd_engines import connector_on

PAGE_TOKENS = 128
HEAD = random_tokens(1, 1300)
PROMPTS = [HEAD + random_tokens(2, 50), HEAD + random_tokens(3, 250)]
"""Two that share more than a window."""


class History(NamedTuple):
    """What one model did: computed, hit in its own pages, from host memory, after a kill."""

    local: list[Completion]
    host: list[Completion]
    restarted: list[Completion]
    damaged: list[Completion]
    log: str


@pytest.fixture(scope="module", params=["hybrid", pytest.param("sinks", marks=pytest.mark.nightly)])
def history(request, model, tmp_path_factory):
    """Let three engines serve the same prompts; the first is killed, the last finds damage."""
    directory = tmp_path_factory.mktemp("ssd")

    def start() -> EngineProcess:
        engine = EngineProcess(
            model(request.param),
            tmp_path_factory.mktemp("engine"),
            connector_on(directory),
            disable_hybrid_kv_cache_manager=True,
        )
        engine.run()
        return engine

    first = start()
    serve(first)
    local = serve(first)
    first.forget()
    host = serve(first)
    first.run()
    first.kill()
    first.close()
    second = start()
    restarted = serve(second)
    second.close()
    flip_all(directory)
    third = start()
    damaged = serve(third)
    third.close()
    return History(local, host, restarted, damaged, first.log.read_text())


def serve(engine: EngineProcess) -> list[Completion]:
    """Serve the prompts one after the other."""
    return engine.complete_each(Ask(prompt=prompt) for prompt in PROMPTS)


def whole_pages(prompt: list[int]) -> int:
    """Return how many tokens of a prompt need not be computed."""
    return (len(prompt) - 1) // PAGE_TOKENS * PAGE_TOKENS


def test_what_is_in_host_memory_gives_the_tokens_of_a_local_hit(history):
    assert tokens_of(history.host) == tokens_of(history.local)
    assert hits_of(history.host) == [whole_pages(prompt) for prompt in PROMPTS]


def test_after_a_kill_all_of_it_comes_from_disk(history):
    assert tokens_of(history.restarted) == tokens_of(history.local)
    assert hits_of(history.restarted) == [whole_pages(prompt) for prompt in PROMPTS]


def test_damage_is_computed_again(history):
    shared = whole_pages(HEAD)
    assert hits_of(history.damaged) == [0, shared], "the second finds what the first computed"
    assert tokens_of(history.damaged) == tokens_of(history.local)


def test_the_log_says_what_it_costs(history):
    assert history.log.count("windows.kept_whole") == 1
