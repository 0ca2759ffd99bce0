"""Real SGLang on a CPU with a model that keeps more than KV: what it stored outlives it, whole."""

import random
import time

import pytest
from sglang_process import PAGE_TOKENS, SglangProcess, flexkv

NUM_TOKENS = 1000
HIT_TOKENS = NUM_TOKENS // PAGE_TOKENS * PAGE_TOKENS
PROMPT = random.Random(1).choices(range(400), k=NUM_TOKENS)
STORED_LIMIT_S = 60


@pytest.fixture
def start(model, tmp_path, tmp_path_factory):
    """Start engines on one directory, each after the end of the one before."""
    engines = []

    def start():
        for engine in engines:
            engine.close()
        folder, storage = tmp_path_factory.mktemp("engine"), flexkv(tmp_path / "ssd")
        engines[:] = [SglangProcess(model("window"), folder, storage)]
        return engines[0]

    yield start
    for engine in engines:
        engine.close()


def wait_until_stored(engine):
    """Return when the whole prompt comes from storage after SGLang has dropped its own caches."""
    end_s = time.monotonic() + STORED_LIMIT_S
    while time.monotonic() < end_s:
        engine.flush()
        if engine.complete(PROMPT, 1).num_from_storage == HIT_TOKENS:
            return
    pytest.fail("not stored in time")


def damage_windows(directory):
    """Change what is stored of windows, whose namespaces say that they are none of KV."""
    slabs = [slab for slab in directory.rglob("*.slab") if b'"swa"' in slab.read_bytes()[:4096]]
    assert slabs
    for slab in slabs:
        with slab.open("r+b") as file:
            for offset in range(4096 + 4096 + 100, slab.stat().st_size, 4096):
                file.seek(offset)
                file.write(b"damage")


def test_a_killed_engine_leaves_its_windows_and_damaged_ones_are_computed_again(start, tmp_path):
    engine = start()
    cold = engine.complete(PROMPT)
    assert cold.num_cached_tokens == 0
    wait_until_stored(engine)
    engine.kill()

    warm = start().complete(PROMPT)
    assert warm.num_from_storage == HIT_TOKENS
    assert warm.tokens == cold.tokens

    engine = start()
    damage_windows(tmp_path / "ssd")
    again = engine.complete(PROMPT)
    assert again.num_from_storage < HIT_TOKENS
    assert again.tokens == cold.tokens
