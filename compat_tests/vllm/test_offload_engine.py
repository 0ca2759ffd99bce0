"""Models of every kind of cache below vLLM's own offloading: killed, started again, damaged."""

from pathlib import Path
from typing import NamedTuple

import pytest
from engine_checks import NO_SAVE, PAGE_TOKENS
from engine_process import Ask, Completion, EngineProcess, random_tokens
from offload_engines import (
    FAILS,
    KEEPS_ROWS,
    PROMPTS,
    connector_on,
    flip_all,
    hits_of,
    serve,
    tokens_of,
)

on_disk = pytest.mark.skipif(not KEEPS_ROWS, reason="this vLLM has no SSD tier")
SHARED_MEMORY = Path("/dev/shm")
OPTIONS = {"state": {"prefix_match_unit": PAGE_TOKENS // 4}}
"""Of the engine, by model: states are kept within pages, too."""

BARRED = [
    Ask(prompt=random_tokens(length, length), kv_transfer_params=NO_SAVE) for length in (100, 700)
]
"""One ends within its first page."""


class History(NamedTuple):
    """What one model did: hit in its own pages, from host memory, after a kill, after damage.

    And of `BARRED`, asked once more, with where vLLM offered to store states of them.
    """

    model: str
    local: list[Completion]
    host: list[Completion]
    restarted: list[Completion]
    damaged: list[Completion]
    barred: list[Completion]
    tails: list[int]
    sources: dict[str, float]
    leftovers: list[Path]
    told: list[dict[str, int]]
    """How many pages routers know by medium: after the local hit, and after the restart."""


EVENTS_ON = {"kv_events_config": {"enable_kv_cache_events": True, "publisher": "null"}}
MIXED = "oracle and a draft model of another shape"
AT_NIGHT = [pytest.param(name, marks=pytest.mark.nightly) for name in ("sinks", MIXED)]


@pytest.fixture(scope="module", params=["oracle", "hybrid", "state", *AT_NIGHT])
def history(request, model, tmp_path_factory):
    """Let three engines serve the same prompts; the first is killed, the last finds damage."""
    if FAILS.get(request.param):
        pytest.skip("this vLLM cannot run the model on every CPU")
    directory = tmp_path_factory.mktemp("ssd")
    name, options = request.param, OPTIONS.get(request.param, {})
    if name == MIXED:
        name, draft = "oracle", str(model("narrow"))
        method = {"method": "draft_model", "num_speculative_tokens": 2}
        options = {"speculative_config": method | {"model": draft}}

    def start() -> EngineProcess:
        folder = tmp_path_factory.mktemp("engine")
        engine = EngineProcess(model(name), folder, connector_on(directory), **options | EVENTS_ON)
        engine.connector("wait_open")
        return engine

    engine = start()
    engine_id = engine.connector("engine_id")
    engine.complete_each(BARRED)
    tails = engine.connector("tails")
    engine.forget()
    barred = engine.complete_each(BARRED)
    serve(engine)
    local = serve(engine)
    told = [engine.connector("told")]
    engine.forget()
    host = serve(engine)
    engine.kill()
    engine.close()
    leftovers = list(SHARED_MEMORY.glob(f"vllm_offload_{engine_id}*"))
    second = start()
    restarted = serve(second)
    told.append(second.connector("told"))
    sources = {name: value for name, value in second.metrics().items() if "by_source" in name}
    second.close()
    flip_all(directory)
    third = start()
    damaged = serve(third)
    third.close()
    return History(
        request.param, local, host, restarted, damaged, barred, tails, sources, leftovers, told
    )


def test_what_is_in_host_memory_gives_the_tokens_of_a_local_hit(history):
    assert tokens_of(history.host) == tokens_of(history.local)
    assert hits_of(history.host) == hits_of(history.local)


@on_disk
def test_after_a_kill_all_of_it_comes_from_disk(history):
    """vLLM does not wait for what is kept within the last page."""
    assert tokens_of(history.restarted) == tokens_of(history.local)
    pages = [hit // PAGE_TOKENS for hit in hits_of(history.restarted)]
    assert pages == [hit // PAGE_TOKENS for hit in hits_of(history.local)]
    assert min(pages) == 10


@pytest.mark.usefixtures("sources")
def test_vllm_counts_it_as_from_disk(history):
    disk = history.sources["vllm:prompt_tokens_cached_by_source_total{source=disk}"]
    assert disk == sum(hits_of(history.restarted))


def test_nothing_is_stored_of_requests_that_must_not_be(history):
    """vLLM knows no limit for what it keeps within pages."""
    assert hits_of(history.barred) == [0, 0]
    assert any(end % PAGE_TOKENS for end in history.tails) is (history.model == "state")


@on_disk
def test_damage_is_computed_again(history):
    assert hits_of(history.damaged) == [0, 0]
    assert tokens_of(history.damaged) == tokens_of(history.local)


@on_disk
def test_routers_know_each_page_of_full_attention_in_both_tiers(history):
    """Of what an earlier process left, too, once its tokens are known."""
    num_pages = sum(len(prompt) // PAGE_TOKENS for prompt in PROMPTS)
    assert history.told == [{"GPU": 0, "CPU": num_pages, "STORAGE": num_pages}] * 2


def test_nothing_is_left_in_shared_memory_after_a_kill(history):
    assert history.leftovers == []
