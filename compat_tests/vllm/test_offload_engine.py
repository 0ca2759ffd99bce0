"""Models of every kind of cache below vLLM's own offloading: killed, started again, damaged."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_process import Ask, Completion, EngineProcess, random_tokens

PROMPTS = [random_tokens(seed, 1350) for seed in (1, 2)]
SHARED_MEMORY = Path("/dev/shm")


def connector_on(directory: Path, **options: Any) -> dict[str, Any]:
    """Return the connector with its SSD tier in `directory`."""
    return {
        "kv_connector": "OffloadGlassConnector",
        "kv_connector_module_path": "offload_glass",
        "kv_connector_extra_config": {
            "cpu_cache_gb": 0.25,
            "ssd_cache_gb": 1,
            "ssd_cache_dir": str(directory),
            "promotion_timeout_s": 60,
            "spec_name": "OffloadingOnCpu",
            "spec_module_path": "offloading_on_cpu",
        }
        | options,
    }


def serve(engine: EngineProcess) -> list[Completion]:
    """Serve the prompts one after the other."""
    return engine.complete_each(Ask(prompt=prompt) for prompt in PROMPTS)


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


def hits_of(completions: list[Completion]) -> list[int]:
    return [completion.num_cached_tokens for completion in completions]


class History(NamedTuple):
    """What one model did: computed, hit in its own pages, from host memory, after a kill."""

    local: list[Completion]
    host: list[Completion]
    restarted: list[Completion]
    damaged: list[Completion]
    sources: dict[str, float]
    leftovers: set[str]


@pytest.fixture(scope="module", params=["oracle", "hybrid", "sinks", "state"])
def history(request, model, tmp_path_factory):
    """Let three engines serve the same prompts; the first is killed, the last finds damage."""
    directory = tmp_path_factory.mktemp("ssd")

    def start() -> EngineProcess:
        engine = EngineProcess(
            model(request.param), tmp_path_factory.mktemp("engine"), connector_on(directory)
        )
        engine.connector("wait_open")
        return engine

    before = set(SHARED_MEMORY.glob("vllm_offload_*"))
    engine = start()
    serve(engine)
    local = serve(engine)
    engine.forget()
    host = serve(engine)
    engine.kill()
    engine.close()
    leftovers = set(SHARED_MEMORY.glob("vllm_offload_*")) - before
    second = start()
    restarted = serve(second)
    sources = {name: value for name, value in second.metrics().items() if "by_source" in name}
    second.close()
    flip_all(directory)
    third = start()
    damaged = serve(third)
    third.close()
    return History(local, host, restarted, damaged, sources, leftovers)


def test_what_is_in_host_memory_gives_the_tokens_of_a_local_hit(history):
    assert tokens_of(history.host) == tokens_of(history.local)
    assert hits_of(history.host) == hits_of(history.local)


def test_after_a_kill_all_of_it_comes_from_disk(history):
    assert tokens_of(history.restarted) == tokens_of(history.local)
    assert hits_of(history.restarted) == hits_of(history.local)
    assert min(hits_of(history.restarted)) >= 1200


def test_vllm_counts_it_as_from_disk(history):
    disk = history.sources["vllm:prompt_tokens_cached_by_source_total{source=disk}"]
    assert disk == sum(hits_of(history.restarted))


def test_damage_is_computed_again(history):
    assert hits_of(history.damaged) == [0, 0]
    assert tokens_of(history.damaged) == tokens_of(history.local)


def test_nothing_is_left_in_shared_memory_after_a_kill(history):
    assert history.leftovers == set()


def flip_all(directory: Path) -> None:
    """Change a byte in every page of every slab; no engine may be running."""
    for slab in directory.rglob("*.slab"):
        content = bytearray(slab.read_bytes())
        for at in range(2048, len(content), 4096):
            content[at] ^= 1
        with slab.open("r+b") as file:
            file.write(content)
