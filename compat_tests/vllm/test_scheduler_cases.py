"""Single scenes against vLLM's real scheduler: what random scripts meet too rarely to rely on."""

import random

import pytest
from delayed_lane import DelayedLane, Weather

CONNECTOR = {
    "kv_connector": "FlexKVConnector",
    "kv_connector_module_path": "flexkv_connectors.vllm.connector",
}
PROMPT = [token % 50 for token in range(7, 7 + 43)]


@pytest.fixture(scope="module")
def base(model):
    from simulated_shape import base_config

    return base_config(model("oracle"), CONNECTOR)


@pytest.fixture
def weather(monkeypatch):
    from flexkv_connectors.session import worker

    weather = Weather(random.Random(0))

    def late_lane(*place, num_threads):
        return DelayedLane(weather, *place)

    monkeypatch.setattr(worker, "CpuLane", late_lane)
    return weather


@pytest.fixture
def start(base, weather):
    """Return a function that starts an engine of which only the host tier holds `prompt`."""
    from scheduler_harness import SimulatedEngine
    from simulated_shape import Shape

    engines = []

    def start(prompt=PROMPT, **shape):
        weather.loads_at_once = not shape.get("load_async", True)
        engine = SimulatedEngine(base, Shape(**shape))
        engines.append(engine)
        engine.drain()  # vLLM's own loop steps before the first request, while we say there is work
        engine.add(prompt, 1)
        engine.drain()
        assert engine.reset(running=False, connector=False)
        return engine

    yield start
    for engine in engines:
        engine.close()


def test_a_prompt_comes_back_from_the_host_tier(start):
    engine = start()
    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()
    assert engine.events["external tokens"] == 40


def test_pages_of_a_failed_synchronous_load_are_not_hit_after_an_abort(start, weather):
    engine = start(load_async=False)
    weather.fail_loads = 1.0
    loser = engine.add(PROMPT, 4)
    engine.schedule()
    engine.deliver()
    engine.abort(loser)
    weather.fail_loads = 0.0

    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()


def test_what_was_computed_on_a_failed_synchronous_load_is_not_saved(start, weather):
    engine = start(PROMPT[:20], load_async=False, max_batched_tokens=48)
    weather.fail_loads = 1.0
    engine.add(PROMPT, 1)
    engine.drain()
    assert weather.counts["failed loads"] == 1
    weather.fail_loads = 0.0
    assert engine.reset(running=False, connector=False)

    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()


@pytest.mark.parametrize("load_async", [True, False])
def test_a_request_whose_loads_always_fail_is_computed_after_one_attempt(
    start, weather, load_async
):
    engine = start(load_async=load_async)
    weather.fail_loads = 1.0
    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()
    assert weather.counts["failed loads"] == 1


def test_the_policy_fail_ends_only_the_request_whose_load_failed(start, weather):
    engine = start(recompute=False)
    weather.fail_loads = 1.0
    loser = engine.add(PROMPT, 4)
    other = engine.add([1, 2, 3], 4)
    engine.drain()
    assert engine.endings[loser].reason == "error"
    assert engine.endings[other].reason == "length"
    engine.check_idle()


def test_a_request_aborted_while_it_loads_gives_its_pages_back_once_the_load_has_ended(
    start, weather
):
    engine = start()
    weather.end_chance = 0.0
    request = engine.add(PROMPT, 4)
    engine.schedule()
    engine.deliver()
    assert engine.loading == [request]

    engine.abort(request)
    engine.schedule()
    engine.deliver()
    assert engine.scheduler.requests, "the pages are still being written"
    weather.end_chance = 1.0
    engine.drain()
    engine.check_idle()


def test_blocks_saved_before_a_reset_are_not_found_after_it(start, weather):
    engine = start()
    weather.end_chance = 0.0
    engine.add(PROMPT[::-1], 1)
    for _ in range(4):
        engine.schedule()
        engine.deliver()
    engine.change_weights()
    weather.end_chance = 1.0
    engine.drain()

    engine.add(PROMPT[::-1], 4)
    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()
    assert engine.events["external tokens"] == 0


def test_a_second_turn_finds_generated_tokens_too(start):
    engine = start()
    first = engine.add(PROMPT, 12)
    engine.drain()
    conversation = PROMPT + engine.endings[first].tokens
    assert engine.reset(running=False, connector=False)
    before = engine.events["external tokens"]

    engine.add(conversation, 2)
    engine.drain()

    engine.check_idle()
    assert engine.events["external tokens"] - before == 48
    assert len(PROMPT) < 48 < len(conversation)


def test_requests_with_different_salts_share_nothing(start):
    engine = start()
    engine.add(PROMPT, 4, salt="a")
    engine.drain()
    assert engine.events["external tokens"] == 0
    assert engine.reset(running=False, connector=False)

    engine.add(PROMPT, 4, salt="a")
    engine.drain()

    engine.check_idle()
    assert engine.events["external tokens"] == 40


def test_pages_of_an_ended_request_are_saved_before_the_next_request_writes_them(start):
    engine = start(async_scheduling=True, num_pages=20, max_batched_tokens=64)
    prompt = PROMPT[::-1][:23]
    first = engine.add(prompt, 10)
    for event in (engine.schedule, engine.schedule, engine.deliver, engine.deliver):
        event()
    engine.abort(first)
    engine.add([token % 50 for token in range(57)], 1)
    engine.drain()
    assert engine.events["late saves"] == 1
    assert engine.reset(running=False, connector=False)
    before = engine.events["external tokens"]

    engine.add(prompt + engine.endings[first].tokens, 2)
    engine.drain()

    engine.check_idle()
    assert engine.events["external tokens"] - before == 24


def test_pages_that_were_still_loading_at_an_abort_are_not_saved(start, weather):
    engine = start()
    weather.end_chance = 0.0
    request = engine.add(PROMPT, 4)
    engine.schedule()
    engine.deliver()
    engine.reset(running=False, connector=True)
    engine.abort(request)
    engine.schedule()
    engine.deliver()
    weather.end_chance = 1.0
    engine.drain()

    engine.add(PROMPT, 4)
    engine.drain()
    engine.check_idle()


def test_what_the_model_runner_forgot_to_save_is_saved_before_its_pages_are_written_again(start):
    engine = start(finalize="never", num_pages=13, max_batched_tokens=48)
    prompt = PROMPT[::-1][:24]
    first = engine.add(prompt, 1)
    engine.schedule()
    engine.deliver()
    engine.add([token % 50 for token in range(47)], 1)
    engine.drain()
    assert engine.reset(running=False, connector=False)
    before = engine.events["external tokens"]

    engine.add(prompt + engine.endings[first].tokens, 2)
    engine.drain()

    engine.check_idle()
    assert engine.events["external tokens"] - before == 24


def test_a_token_that_was_still_to_be_fed_back_at_an_abort_is_not_saved(start):
    engine = start(async_scheduling=True)
    prompt = PROMPT[::-1][:23]
    first = engine.add(prompt, 10)
    for event in (engine.schedule, engine.schedule, engine.deliver):
        event()
    request = engine.scheduler.requests[first]
    assert (request.num_tokens, request.num_computed_tokens) == (24, 24)
    engine.abort(first)
    engine.drain()
    assert engine.reset(running=False, connector=False)
    before = engine.events["external tokens"]

    engine.add(prompt + engine.endings[first].tokens + [1], 2)
    engine.drain()

    engine.check_idle()
    assert engine.events["external tokens"] - before == 16


def test_routers_are_told_that_a_cache_which_has_failed_holds_nothing_any_more(start):
    engine = start()
    engine.add(PROMPT, 1)
    engine.drain()
    assert engine.router.media["CPU"]
    engine.scheduler.connector._barrier.switch_off("of a test")
    engine.add(PROMPT[:7], 1)
    engine.drain()
    assert not engine.router.media["CPU"]
    assert engine.router.media["GPU"]
