"""More than one rank, on the real engine: every rank's bytes come back, and the host memory is shared out.

Data parallelism: ...
"""

import pytest
from engine_process import Ask, random_tokens
from processes import host_pools

PROMPT = random_tokens(11, 1900)
TWO_RANKS = {"tensor_parallel_size": 2, "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
CPU_CACHE_GB = 0.25
CONNECTOR = {
    "kv_connector": "PoisonableConnector",
    "kv_connector_module_path": "poisonable_connector",
    "kv_connector_extra_config": {"cpu_cache_gb": CPU_CACHE_GB},
}


@pytest.fixture(
    scope="module",
    params=[("oracle", TWO_RANKS), ("mla", TWO_RANKS), ("mla", {})],
    ids=["heads split over 2 ranks", "MLA on 2 ranks", "MLA on 1 rank"],
)
def engine(request, start_engine):
    name, arguments = request.param
    engine = start_engine(name, connector=CONNECTOR, **arguments)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def truth(engine):
    """Return the tokens and page digests of a cold run, and of a hit in the engine's own cache."""
    (cold,) = engine.complete(Ask(prompt=PROMPT))
    (local,) = engine.complete(Ask(prompt=PROMPT))
    assert cold.num_cached_tokens == 0
    assert local.num_cached_tokens > 0
    assert len(set(local.tokens)) > 8
    return local, engine.cached_pages(PROMPT)


def test_a_load_gives_every_rank_the_pages_it_had_computed(engine, truth):
    local, computed = truth
    engine.forget()

    (loaded,) = engine.complete(Ask(prompt=PROMPT))

    assert loaded == local
    assert computed == engine.cached_pages(PROMPT)
    assert len(computed) * page_tokens(engine) > 1700


def page_tokens(engine):
    return 128
