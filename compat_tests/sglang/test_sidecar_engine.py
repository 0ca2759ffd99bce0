"""Real SGLang on a CPU with models that keep more than KV: what it stored outlives it, whole."""

import random
import time
from typing import Any, NamedTuple

import pytest
from engine_steps import STORED_LIMIT_S
from sglang_process import PAGE_TOKENS, flexkv

NUM_TOKENS = 10 * PAGE_TOKENS
LONGER = random.Random(1).choices(range(400), k=NUM_TOKENS + 1)
PROMPT = LONGER[:NUM_TOKENS]
"""A state is stored where a prompt ended, and is of use to prompts that go on from there: here by
one token, which a wrong state makes another."""


class Model(NamedTuple):
    """A model that keeps something beside its KV."""

    name: str
    pool: str
    arguments: dict[str, Any]


WINDOW = Model("window", "swa", {})
STATE = Model(
    "state",
    "mamba",
    # SGLang keeps states of this model in pages of one token only, and as many as there is room.
    {"page_size": 1, "max_mamba_cache_size": 64, "max_running_requests": 4},
)


@pytest.fixture(params=[WINDOW, STATE], ids=lambda model: model.name)
def kind(request):
    """Each of the models."""
    return request.param


@pytest.fixture
def start(start_engine, model, kind, tmp_path):
    """Start engines on one directory, each after the end of the one before."""

    def start():
        engine = start_engine(model(kind.name), flexkv(tmp_path / "ssd"), **kind.arguments)
        wait_until_found_again(engine)
        return engine

    return start


def wait_until_found_again(engine):
    """Return when the KV and the pool beside it know what lies in their files."""
    end_s = time.monotonic() + STORED_LIMIT_S
    while engine.log_text().count("ssd.restored") < 2:
        engine.flush()
        assert time.monotonic() < end_s, "not found again in time"


def store(engine):
    """Store the prompt; return when it comes from storage, SGLang's own caches being empty."""
    engine.complete(PROMPT, 1)
    end_s = time.monotonic() + STORED_LIMIT_S
    while time.monotonic() < end_s:
        engine.flush()
        if engine.complete(LONGER, 1).num_from_storage >= NUM_TOKENS:
            return
    pytest.fail("not stored in time")


def damage(directory, pool):
    """Change what is stored of a pool, whose namespace says that it is none of KV."""
    mark = f'"cache_group":"{pool}"'.encode()
    slabs = [slab for slab in directory.rglob("*.slab") if mark in slab.read_bytes()[:4096]]
    assert slabs
    for slab in slabs:
        with slab.open("r+b") as file:
            for offset in range(4096 + 4096 + 100, slab.stat().st_size, 4096):
                file.seek(offset)
                file.write(b"damage")


def test_a_killed_engine_leaves_all_parts_and_damaged_ones_are_computed_again(
    start, kind, tmp_path
):
    engine = start()
    cold = engine.complete(LONGER)
    assert cold.num_cached_tokens == 0
    engine.flush()
    store(engine)
    engine.kill()

    warm = start().complete(LONGER)
    assert warm.num_from_storage >= NUM_TOKENS
    assert warm.tokens == cold.tokens

    engine = start()
    damage(tmp_path / "ssd", kind.pool)
    again = engine.complete(LONGER)
    assert again.num_from_storage < NUM_TOKENS
    assert again.tokens == cold.tokens
