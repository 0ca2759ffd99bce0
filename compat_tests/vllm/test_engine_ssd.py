"""KV on SSD outlives the engine: killed and started again, it loads what an earlier one saved."""

import pytest
from engine_checks import PAGE_TOKENS, counts
from engine_process import Ask, random_tokens

PROMPT = random_tokens(1, 1000)
HIT_TOKENS = len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS


@pytest.fixture(scope="module")
def start(start_engine, tmp_path_factory):
    """Return a function that starts an engine on one directory, always the same."""
    directory = tmp_path_factory.mktemp("ssd")

    def start(model="oracle", options=(), **engine_args):
        extra = {"cpu_cache_gb": 0.25, "ssd_cache_gb": 0.5, "ssd_cache_dir": str(directory)}
        connector = {
            "kv_connector": "flexkv",
            "kv_connector_extra_config": extra | dict(options),
        }
        return start_engine(model, connector=connector, **engine_args)

    return start


def test_a_killed_engine_leaves_its_blocks_to_the_next(start):
    engine = start()
    (cold,) = engine.complete(Ask(prompt=PROMPT))
    assert cold.num_cached_tokens == 0
    pages = engine.cached_pages(PROMPT)
    engine.kill()
    engine = start()
    engine.run()
    (warm,) = engine.complete(Ask(prompt=PROMPT))
    assert warm.num_cached_tokens == HIT_TOKENS
    assert warm.tokens == cold.tokens
    assert engine.cached_pages(PROMPT) == pages
    assert counts(engine)["ssd_load_tokens"] == HIT_TOKENS
