"""Ranks and parents below vLLM's own offloading: two ranks, another degree, MultiConnector."""

import pytest
from engine_process import EngineProcess
from offload_engines import COUNTS_CHILDREN, SERVES_RANKS, connector_on, hits_of, serve, tokens_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return the folder of the SSD tier."""
    return tmp_path_factory.mktemp("ssd")


@pytest.fixture(scope="module")
def start(model, directory, tmp_path_factory):
    """Return a function that starts an engine at a degree; blocks are laid out for two."""

    def start(degree):
        engine = EngineProcess(
            model("oracle"),
            tmp_path_factory.mktemp("engine"),
            connector_on(directory, max_tp=2),
            tensor_parallel_size=degree,
            distributed_executor_backend="mp" if degree > 1 else None,
        )
        engine.connector("wait_open")
        return engine

    return start


@pytest.fixture(scope="module")
def written(start):
    """Let an engine of two ranks serve, and kill it; return what it served from its own pages."""
    if not SERVES_RANKS:
        pytest.skip("several ranks are served without caching")
    engine = start(2)
    serve(engine)
    local = serve(engine)
    engine.kill()
    engine.close()
    return local


@pytest.mark.parametrize("degree", [2, 1])
def test_what_two_ranks_wrote_is_read_at_another_degree_after_a_kill(start, written, degree):
    engine = start(degree)
    restarted = serve(engine)
    engine.close()
    assert hits_of(restarted) == hits_of(written)
    assert tokens_of(restarted) == tokens_of(written)


def test_without_max_tp_another_degree_finds_nothing(model, directory, written, tmp_path):
    engine = EngineProcess(model("oracle"), tmp_path, connector_on(directory))
    engine.connector("wait_open")
    served = serve(engine)
    engine.close()
    assert hits_of(served) == [0, 0]
    assert tokens_of(served) == tokens_of(written)


@pytest.mark.skipif(not COUNTS_CHILDREN, reason="this vLLM cannot count its own children")
@pytest.mark.parametrize("name", ["flexkv", "flexkv-offload"])
def test_it_is_a_child_of_multi_connector(model, tmp_path, name):
    child = connector_on(tmp_path / "ssd") | {"kv_connector": name}
    del child["kv_connector_module_path"]
    parent = {
        "kv_connector": "MultiConnector",
        "kv_connector_extra_config": {"connectors": [child | {"kv_role": "kv_both"}]},
    }
    folder = tmp_path / "engine"
    folder.mkdir()
    engine = EngineProcess(model("oracle"), folder, parent)
    serve(engine)
    local = serve(engine)
    engine.forget()
    host = serve(engine)
    metrics = engine.metrics()
    engine.close()
    assert hits_of(host) == hits_of(local)
    assert tokens_of(host) == tokens_of(local)
    assert [name for name in metrics if name.startswith("flexkv:")]
