"""The connector under an engine that plays TensorRT-LLM's call order."""

import pytest

pytest.importorskip("torch")
from engine_double import PAGE, Engine, Request


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """A small host tier; blocks of two pages."""
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))


@pytest.fixture
def start(tmp_path):
    """Start engines, and stop them afterwards."""
    engines = []

    def start(**settings):
        engines.append(Engine(tmp_path, **settings).register())
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def prompt(num_tokens, first=0):
    return list(range(first, first + num_tokens))


def test_a_second_request_loads_what_the_first_has_computed(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers == {1: 0, 2: 16}
