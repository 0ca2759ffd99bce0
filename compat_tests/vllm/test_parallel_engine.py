"""Several ranks and several engines: every rank's bytes come back, each has its host memory.

Bytes are compared on each rank by itself. On a CPU without AMX vLLM cannot continue a prompt of an
MLA model, and nothing is offered for one. The bytes of its ranks are moved all the same here, by a
connector that does not ask: so tokens are compared between two hits, and bytes with the cold run.
"""

from typing import NamedTuple

import pytest
from engine_process import Ask, random_tokens
from http_server import HttpServer, cached_tokens
from processes import host_pools

CPU_CACHE_GB = 0.25
CPU_CACHE_BYTES = CPU_CACHE_GB * 2**30
UNGATED = {
    "kv_connector": "UngatedConnector",
    "kv_connector_module_path": "ungated_connector",
    "kv_connector_extra_config": {"cpu_cache_gb": CPU_CACHE_GB},
}
TWO_RANKS = {"tensor_parallel_size": 2, "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
PROMPT = random_tokens(11, 1900)


class Setup(NamedTuple):
    """What to start, and how many host pools it should have."""

    model: str
    num_ranks: int
    num_pools: int


SETUPS = {
    "KV heads split over 2 ranks": Setup("oracle", 2, 2),
    "MLA replicated on 2 ranks": Setup("mla", 2, 1),
    "MLA on 1 rank": Setup("mla", 1, 1),
}


class Hits:
    """What one engine did with one prompt, its host tier spoiled at the end."""

    def __init__(self, engine, num_ranks):
        self.num_ranks = num_ranks
        self.cold, self.computed_pages = self._complete(engine)
        self.hit, _ = self._complete(engine)
        self.pools = host_pools(engine.pid)
        engine.forget()
        self.loaded, self.loaded_pages = self._complete(engine)
        self.num_spoiled = sum(engine.worker_connectors("spoil"))
        engine.forget()
        self.spoiled, self.spoiled_pages = self._complete(engine)

    @property
    def num_loaded_pages(self):
        return self.loaded.num_cached_tokens // self.page_tokens

    def _complete(self, engine):
        (completion,) = engine.complete(Ask(prompt=PROMPT))
        self.page_tokens = engine.connector("page_tokens")
        page_ids = engine.connector("last_page_ids")
        return completion, engine.worker_connectors("page_digests", page_ids=page_ids)


@pytest.fixture(scope="module", params=SETUPS.values(), ids=SETUPS)
def setup(request):
    return request.param


@pytest.fixture(scope="module")
def hits(setup, start_engine):
    arguments = TWO_RANKS if setup.num_ranks == 2 else {}
    engine = start_engine(setup.model, connector=UNGATED, **arguments)
    yield Hits(engine, setup.num_ranks)
    engine.close()


def test_a_load_gives_each_rank_the_bytes_that_it_had_computed(hits):
    num_pages = hits.num_loaded_pages
    assert num_pages * hits.page_tokens > len(PROMPT) - 150
    assert len(hits.computed_pages) == len(hits.loaded_pages) == hits.num_ranks
    for computed, loaded in zip(hits.computed_pages, hits.loaded_pages, strict=True):
        assert computed[:num_pages] == loaded[:num_pages]
        assert len(set(loaded[:num_pages])) == num_pages


def test_a_load_gives_the_tokens_of_a_hit_on_pages_that_nobody_touched(hits):
    assert hits.hit == hits.loaded
    assert len(set(hits.hit.tokens)) > 8


def test_a_host_tier_with_other_bytes_shows_in_every_page_of_every_rank_and_in_the_tokens(hits):
    assert hits.spoiled.num_cached_tokens == hits.loaded.num_cached_tokens
    for loaded, spoiled in zip(hits.loaded_pages, hits.spoiled_pages, strict=True):
        pairs = list(zip(loaded, spoiled, strict=True))[: hits.num_loaded_pages]
        assert all(before != after for before, after in pairs)
    assert hits.loaded.tokens[:8] != hits.spoiled.tokens[:8]


def test_what_ranks_hold_alike_is_kept_once_and_mapped_by_all_of_them(setup, hits):
    assert len(hits.pools) == hits.num_spoiled == setup.num_pools
    mappers = [pool.mapper_pids for pool in hits.pools.values()]
    assert sum(map(len, mappers)) == setup.num_ranks
    assert len(set.union(*mappers)) == setup.num_ranks


def test_the_ranks_of_an_engine_share_its_host_memory_equally(hits):
    sizes = [pool.num_bytes for pool in hits.pools.values()]
    assert len(set(sizes)) == 1
    assert 0.98 * CPU_CACHE_BYTES < sum(sizes) <= CPU_CACHE_BYTES


@pytest.fixture(scope="module")
def two_engines(model, tmp_path_factory):
    """Start one server with two engines. The model is MoE for vLLM: they step in lockstep."""
    server = HttpServer(
        model("mla"),
        tmp_path_factory.mktemp("server"),
        UNGATED,
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        data_parallel_size=2,
        max_model_len=2048,
    )
    yield server
    server.close()


def test_each_engine_of_a_server_takes_the_host_memory_asked_for(two_engines):
    sizes = [pool.num_bytes for pool in host_pools(two_engines.pid).values()]
    assert len(sizes) == 2
    assert all(0.98 * CPU_CACHE_BYTES < size <= CPU_CACHE_BYTES for size in sizes)


def test_engines_of_one_server_have_caches_of_their_own(two_engines):
    for rank in (0, 1):
        cold, hit, loaded = (answer(two_engines, rank) for _ in range(3))
        assert cached_tokens(cold) == 0
        assert cached_tokens(hit) == cached_tokens(loaded) > 1700
        assert hit["choices"][0]["token_ids"] == loaded["choices"][0]["token_ids"]


def answer(server, rank):
    completion = server.complete(PROMPT, rank=rank)
    server.post("/reset_prefix_cache")
    return completion


@pytest.mark.parametrize(("kind", "num_engines"), [("oracle", 1), ("mla", 2)])
def test_engines_of_dense_models_know_nothing_of_each_other_and_are_given_as_much(
    model, kind, num_engines
):
    from simulated_shape import Shape, base_config, config_for, kv_cache_config

    from flexkv_connectors.session.worker import host_budget_bytes
    from flexkv_connectors.vllm.deployment import read_cache_config, translate

    shape = Shape(cpu_cache_gb=CPU_CACHE_GB, mla=kind == "mla")
    config = config_for(base_config(model(kind), {"kv_connector": "flexkv"}), shape, 0)
    parallel = config.parallel_config
    parallel.data_parallel_size = parallel.data_parallel_size_local = 2
    if not config.model_config.is_moe:
        parallel.reconfigure_for_independent_dp_rank()  # as vLLM does in each engine's process
    deployment = translate(config, kv_cache_config(shape, 0), read_cache_config(config))
    assert deployment.num_engines == num_engines
    assert host_budget_bytes(deployment) == CPU_CACHE_BYTES
