"""What a router hears of an engine, over the sockets that the user has named."""

import json
import sys

import pytest
from engine_double import PAGE, Engine, Request
from event_consumer import ask

from flexkv_core.errors import ConfigError

TWO_BLOCKS = 16


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))


@pytest.fixture
def replays(tmp_path):
    return f"ipc://{tmp_path}/replays"


@pytest.fixture
def publish(monkeypatch, tmp_path, replays):
    """Return a function that sets the option."""

    def publish(**changes):
        parts = {"endpoint": f"ipc://{tmp_path}/events", "replay_endpoint": replays}
        monkeypatch.setenv("FLEXKV_EVENTS", json.dumps(parts | {"format": "map"} | changes))

    return publish


@pytest.fixture
def start(tmp_path, publish):
    """Return a function that starts an engine that publishes events."""
    engines = []

    def start(**settings):
        publish()
        engines.append(Engine(tmp_path, **settings).register())
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def prompt(num_tokens, first=0):
    return list(range(first, first + num_tokens))


def step(engine):
    """Run a request of no importance: what was saved last is told in the next step."""
    engine.run(Request(10_000 + engine.num_computed_tokens, prompt(2, 900)))


class Router:
    """Believes what it hears: names with all tokens up to the end of a page."""

    def __init__(self):
        self.pages = {}

    def hear(self, endpoint):
        for _, _, (_, events, _) in ask(endpoint):
            for event in events:
                self.store(event) if event["type"] == "BlockStored" else self.remove(event)
        return self

    def store(self, event):
        parent, tokens = event["parent_block_hash"], event["token_ids"]
        before = [] if parent is None else self.pages[parent]
        assert event["block_size"] == PAGE
        for at, name in enumerate(event["block_hashes"], 1):
            assert name not in self.pages, "told twice"
            self.pages[name] = before + tokens[: at * PAGE]

    def remove(self, event):
        for name in event["block_hashes"]:
            del self.pages[name]

    def longest(self, tokens):
        return max(
            (len(page) for page in self.pages.values() if page == tokens[: len(page)]), default=0
        )


def test_routers_hear_of_what_is_saved(start, replays):
    engine = start()
    engine.run(Request(1, prompt(20)))
    step(engine)
    router = Router().hear(replays)
    assert sorted(router.pages.values(), key=len) == [prompt(end) for end in (4, 8, 12, 16)]


def test_routers_hear_what_has_left(start, replays, monkeypatch):
    """Room for three blocks of a prompt of two, and of another."""
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", str(3 * 4096 / 2**30))
    engine = start()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20, 50)))
    step(engine)
    router = Router().hear(replays)
    assert router.longest(prompt(20, 50)) == TWO_BLOCKS
    assert router.longest(prompt(20)) == TWO_BLOCKS // 2
    engine.run(Request(3, prompt(20)))
    assert engine.offers[3] == TWO_BLOCKS // 2


def test_routers_hear_of_each_block_that_a_reset_takes(start, replays):
    engine = start()
    engine.run(Request(1, prompt(20)))
    step(engine)
    engine.scheduler._half.session.reset()
    step(engine)
    assert Router().hear(replays).pages == {}
    assert any(
        event["type"] == "BlockRemoved" for _, _, (_, said, _) in ask(replays) for event in said
    )


def test_routers_hear_that_a_cache_which_has_failed_holds_nothing_any_more(start, replays):
    engine = start()
    engine.run(Request(1, prompt(20)))
    step(engine)
    assert Router().hear(replays).pages
    engine.scheduler._barrier.switch_off("of a test")
    step(engine)
    assert Router().hear(replays).pages == {}


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_engine_is_heard_once_however_many_ranks_it_has(start, replays, ranks):
    engine = start(ranks=ranks)
    engine.run(Request(1, prompt(20)))
    step(engine)
    [(_, _, (_, _, dp_rank))] = ask(replays)
    assert dp_rank == 0


def test_ranks_that_schedule_for_themselves_have_addresses_of_their_own(tmp_path, publish, replays):
    publish()
    engine = Engine(tmp_path, ranks=2, enable_attention_dp=True)
    second = engine.ranks.run(lambda rank: rank and type(engine.scheduler)(engine.arguments))[1]
    assert ask(replays) == ask(f"{replays}-1") == []
    second.shutdown()
    engine.close()


def test_a_salt_is_told_with_its_pages(start, replays):
    engine = start()
    engine.run(Request(1, prompt(20), cache_salt="salt"))
    engine.run(Request(2, prompt(20)))
    step(engine)
    salts = [event.get("cache_salt") for _, _, (_, said, _) in ask(replays) for event in said]
    assert sorted(salts, key=str) == [None, "salt"]
    assert len(Router().hear(replays).pages) == 8


def test_what_cannot_be_told_is_saved_and_counted(start, replays):
    engine = start()
    engine.run(Request(1, prompt(20), lora_task_id=7))
    engine.run(Request(2, prompt(20), lora_task_id=7))
    assert ask(replays) == []
    assert engine.offers[2] == TWO_BLOCKS
    assert engine.scheduler._half.session.take_counts()["events_unsaid_blocks"] == 2


def test_a_token_that_names_no_content_is_not_looked_at(start, replays):
    """A page behind the last block may hold one; that costs neither events nor cache."""
    engine = start()
    engine.run(Request(1, [*prompt(16), 16, 17, 18, 2**40, 19]))
    step(engine)
    assert Router().hear(replays).longest(prompt(16)) == TWO_BLOCKS
    assert not engine.scheduler._events.reason


def test_a_failure_to_publish_costs_events_and_nothing_else(start):
    def broken(*_):
        raise ZeroDivisionError

    engine = start()
    engine.scheduler._half._publisher.publish = broken
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == TWO_BLOCKS
    assert "ZeroDivisionError" in engine.scheduler._events.reason


def test_without_the_option_nothing_is_opened_or_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zmq", None)
    engine = Engine(tmp_path).register()
    engine.run(Request(1, prompt(20)))
    engine.run(Request(2, prompt(20)))
    assert engine.offers[2] == TWO_BLOCKS
    engine.close()


def test_an_engine_without_its_events_does_not_start(tmp_path, publish):
    publish(endpoint="nonsense")
    with pytest.raises(ConfigError, match="endpoint of events is nonsense"):
        Engine(tmp_path)
