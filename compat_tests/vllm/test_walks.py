"""How often vLLM's real scheduler makes us walk the tree of known chains for one request."""

import pytest
from test_scheduler_contract import CONNECTOR

PROMPT = list(range(43))
OTHERS = [[number] * 43 for number in range(100, 160)]


@pytest.fixture(params=["host", "host and SSD", "SSD alone"])
def place(request):
    """Where the blocks of `PROMPT` are."""
    return request.param


@pytest.fixture
def engine(place, model, tmp_path):
    """An engine that has served `PROMPT` and then others."""
    from scheduler_harness import SimulatedEngine
    from simulated_shape import Shape, base_config

    options = {} if place == "host" else {"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}
    engine = SimulatedEngine(base_config(model("oracle"), CONNECTOR), Shape(options=options))
    engine.drain()
    engine.add(PROMPT, 4)
    engine.drain()
    for other in OTHERS if place == "SSD alone" else OTHERS[:1]:
        engine.add(other, 4)
        engine.drain()
    assert engine.reset(running=False, connector=False)
    yield engine
    engine.close()


def test_a_request_that_arrives_is_one_walk(engine, place, monkeypatch):
    from flexkv_core.control.index.tree import KeyTree

    walks, descend = [], KeyTree.descend
    monkeypatch.setattr(
        KeyTree,
        "descend",
        lambda index, keys, start: walks.append(keys) or descend(index, keys, start),
    )
    engine.add(PROMPT, 4)
    while not engine.events["external tokens"]:
        assert engine.schedule()
        engine.deliver()
    assert len(walks) == 1
    [state] = engine.scheduler.connector._scheduler.session.states.values()
    assert (state.num_ssd_tokens(state.offer) > 0) == (place == "SSD alone")
    engine.drain()
