"""Our connector against vLLM's real scheduler, in every order of events that seeds can find.

Each script is a random walk: requests arrive, batches are scheduled, run and delivered, copies
take their time or fail, requests are aborted and preempted, caches are reset, weights change. The
simulated model notices every wrong byte; at the end nothing may be left over.
"""

import random
from collections import Counter

import pytest
from delayed_lane import DelayedLane, Weather

CONNECTOR = {
    "kv_connector": "FlexKVConnector",
    "kv_connector_module_path": "flexkv_connectors.vllm.connector",
}
NUM_STEPS = 80
INTERESTING = {
    "aborts while PREEMPTED",
    "aborts while RUNNING",
    "aborts while WAITING",
    "aborts while WAITING_FOR_REMOTE_KVS",
    "batches in flight",
    "ended by error",
    "failed loads",
    "failed saves",
    "late saves",
    "loads",
    "resets running=False connector=True",
    "resets running=True connector=False",
    "resets running=True connector=True",
    "resumed requests",
    "saves",
    "weight changes",
}


@pytest.fixture(scope="module")
def bases(model):
    from simulated_shape import base_config

    return {name: base_config(model(name), CONNECTOR) for name in ("oracle", "mla")}


@pytest.fixture
def weather(monkeypatch):
    from flexkv_connectors.session import worker

    weather = Weather(random.Random(0))

    def late_lane(*place, num_threads):
        return DelayedLane(weather, *place)

    monkeypatch.setattr(worker, "CpuLane", late_lane)
    return weather


def _random_shape(rng):
    from simulated_shape import PAGE_TOKENS, Shape

    return Shape(
        async_scheduling=rng.random() < 0.5,
        v2_runner=rng.random() < 0.5,
        finalize=rng.choice(["step", "step", "late", "never"]),
        num_stages=rng.choice([1, 1, 2, 3]),
        tensor_parallel=rng.choice([1, 1, 2]),
        mla=rng.random() < 0.2,
        layout=rng.choice(["LBNHC", "LBHNC", "BLHNC"]),
        num_pages=rng.choice([20, 20, 40]),
        recompute=rng.random() < 0.7,
        load_async=rng.random() < 0.8,
        block_tokens=PAGE_TOKENS * rng.choice([1, 2, 3]),
        cpu_cache_gb=rng.choice([1e-4, 4e-4, 2e-3]),
    )


def play(bases, weather, seed, **given):
    """Play one script to its end and return the engine; `given` is what its shape is to have."""
    from scheduler_harness import SimulatedEngine

    rng = weather.rng = random.Random(seed)
    shape = _random_shape(rng)._replace(**given)
    engine = SimulatedEngine(bases["mla" if shape.mla else "oracle"], shape)
    weather.end_chance = rng.choice([1.0, 0.5, 0.2])
    weather.loads_at_once = not shape.load_async
    # vLLM cannot take a synchronous load back while the next batch of its request is under way.
    may_fail = shape.load_async or engine.capacity == 1
    weather.fail_loads = rng.choice([0.0, 0.2]) if may_fail else 0.0
    weather.fail_saves = rng.choice([0.0, 0.2])
    heads = [[rng.randrange(50) for _ in range(48)] for _ in range(3)]
    asked = []
    for _ in range(NUM_STEPS):
        _random_event(engine, rng, heads, asked)
    if rng.random() < 0.3:
        engine.finish_requests()
        engine.change_weights()
    engine.drain()
    for ask in asked:
        engine.add(*ask)
    engine.drain()
    engine.check_idle()
    engine.close()
    return engine


def _play_all(bases, weather, seeds):
    """Play scripts and count what happened in them."""
    events = Counter()
    for seed in seeds:
        events += play(bases, weather, seed).events
    return events + weather.counts


def _random_event(engine, rng, heads, asked):
    draw = rng.random()
    if draw < 0.2 and len(engine.active) < 6:
        head = rng.choice(heads)
        prompt = head[: rng.randrange(1, len(head))]
        prompt += [rng.randrange(50) for _ in range(rng.randrange(6))]
        asked.append((prompt, rng.randrange(1, 13), rng.choice(["", "", "a"])))
        engine.add(*asked[-1])
    elif draw < 0.5:
        engine.schedule()
    elif draw < 0.65:
        engine.execute()
    elif draw < 0.92:
        engine.deliver()
    elif draw < 0.95 and engine.active:
        engine.abort(rng.choice(engine.loading or engine.active))
    elif draw < 0.97:
        engine.reset(running=False, connector=rng.random() < 0.2)
    elif draw < 0.98 and engine.can_reset_running:
        engine.sleep() if rng.random() < 0.2 else engine.reset(running=True, connector=False)
    elif engine.is_quiet:
        engine.change_weights()


@pytest.mark.parametrize("quarter", range(4))
def test_scripts_end_with_right_tokens_and_nothing_left_over(bases, weather, quarter):
    seen = _play_all(bases, weather, range(250 * quarter, 250 * quarter + 250))
    missing = INTERESTING - set(seen)
    assert not missing, f"these scripts prove nothing about {missing}"


def test_a_lane_that_copies_nothing_is_caught(bases, weather):
    from simulated_model import WrongBytes

    weather.lose_copies = True
    with pytest.raises(WrongBytes):
        _play_all(bases, weather, range(20))
