"""A server of two engines below vLLM's own offloading: host memory of each, metrics, the end."""

import uuid
from pathlib import Path

import pytest
from engine_process import random_tokens
from http_server import HttpServer, cached_tokens
from offload_engines import connector_on
from processes import family

ENGINE_ID = uuid.uuid4().hex
HOST_BYTES = 2**28
PROMPT = random_tokens(1, 700)
HIT_TOKENS = 640


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """Return the server; in the end it leaves nothing in shared memory."""
    options = connector_on(tmp_path_factory.mktemp("ssd"), cpu_cache_gb=HOST_BYTES / 2**30)
    del options["kv_connector_module_path"]
    server = HttpServer(
        model("oracle"),
        tmp_path_factory.mktemp("server"),
        options | {"kv_connector": "flexkv-offload", "engine_id": ENGINE_ID},
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        data_parallel_size=2,
    )
    yield server
    server.close()
    assert names_in_shared_memory() == []


def names_in_shared_memory():
    return [path.name for path in Path("/dev/shm").glob(f"*{ENGINE_ID}*")]


def regions(pid):
    """Return the bytes of each region that processes of a server have mapped, by its name."""
    sizes = {}
    for member in family(pid):
        for line in Path(f"/proc/{member}/maps").read_text().splitlines():
            if "vllm_offload_" in line:
                span, name = line.split()[0], line.split()[5]
                first, last = (int(end, 16) for end in span.split("-"))
                sizes[name] = last - first
    return sizes


def test_each_engine_has_host_memory_of_its_own_without_a_name(server):
    sizes = regions(server.pid)
    assert len(sizes) == 2
    assert all(0.98 * HOST_BYTES < size <= HOST_BYTES for size in sizes.values())
    assert names_in_shared_memory() == []


def test_each_engine_finds_what_it_has_kept_and_says_so_in_the_metrics(server):
    for rank in (0, 1):
        found = []
        for _ in range(2):
            found.append(cached_tokens(server.complete(PROMPT, rank=rank)))
            server.post("/reset_prefix_cache")
        assert found == [0, HIT_TOKENS]
    server.wait_for("flexkv:save_bytes", 1)
    saved = [s for s in server.metrics()["flexkv:save_bytes"].samples if s.name.endswith("_total")]
    assert {sample.labels["engine"] for sample in saved if sample.value > 0} == {"0", "1"}
