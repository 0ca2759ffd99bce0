"""Blocks on SSD outlive the engine, and are never waited for."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
from engine_double import PAGE, Engine, Request
from event_consumer import ask

from flexkv_connectors.session import scheduler
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.identity import origin


@pytest.fixture(autouse=True)
def options(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXKV_CPU_CACHE_GB", "0.01")
    monkeypatch.setenv("FLEXKV_SSD_CACHE_GB", "0.1")
    monkeypatch.setenv("FLEXKV_SSD_CACHE_DIR", str(tmp_path / "ssd"))
    monkeypatch.setenv("FLEXKV_BLOCK_TOKENS", str(2 * PAGE))
    # Long after it has written the model: MPI starts the ranks, and nobody knows when the first.
    monkeypatch.setattr(origin, "engine_start_s", lambda: time.time() + 700)


@pytest.fixture
def start(tmp_path):
    """Start engines one after the other, each with what the last one left behind."""
    engines = []

    def start(**settings):
        while engines:
            engines.pop().close()
        (tmp_path / "model").mkdir(exist_ok=True)
        engines.append(Engine(tmp_path / "model", **settings).register())
        for worker in engines[-1].workers:
            ssd = worker._half.session.ssd
            ssd._identification.join()
            ssd._tier.wait_recovered()
        return engines[-1]

    yield start
    engines.pop().close()


def prompt(num_tokens, first=0):
    return list(range(first, first + num_tokens))


def settle(engine, number):
    """Run a request of no importance, with which orders reach the workers, until they are done."""
    for offset in range(3):
        engine.run(Request(100 * number + offset, prompt(2, 500)))
        for worker in engine.workers:
            assert worker._half.session.worker.drain(30)
        engine.iterate()


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_question_after_a_restart_brings_blocks_for_the_second(start, ranks):
    engine = start(ranks=ranks)
    engine.run(Request(1, prompt(20)))
    settle(engine, 1)
    engine = start(ranks=ranks)
    settle(engine, 1)
    engine.run(Request(2, prompt(20)))
    settle(engine, 2)
    engine.run(Request(3, prompt(20)))
    assert (engine.offers[2], engine.offers[3]) == (0, 16)
    assert engine.scheduler._half.session.take_counts()["promoted_blocks"] == 2


def test_routers_hear_of_what_an_earlier_engine_has_left_when_its_tokens_come(
    start, tmp_path, monkeypatch
):
    replays = f"ipc://{tmp_path}/replays"
    parts = {"endpoint": f"ipc://{tmp_path}/events", "replay_endpoint": replays, "format": "map"}
    monkeypatch.setenv("FLEXKV_EVENTS", json.dumps(parts))
    engine = start()
    engine.run(Request(1, prompt(20)))
    settle(engine, 1)
    engine = start()
    settle(engine, 1)
    assert ask(replays) == []
    engine.run(Request(2, prompt(20)))
    settle(engine, 2)
    said = [event for _, _, (_, events, _) in ask(replays) for event in events]
    assert [(event["medium"], event["token_ids"]) for event in said] == [
        ("STORAGE", prompt(16)),
        ("CPU", prompt(16)),  # brought there for the next request
    ]
    assert said[0]["block_hashes"] == said[1]["block_hashes"]


@pytest.fixture
def gate(monkeypatch):
    """What every write to SSD waits at."""
    gate, write = threading.Event(), SsdTier.write

    def wait_first(*arguments):
        gate.wait(30)
        return write(*arguments)

    monkeypatch.setattr(SsdTier, "write", wait_first)
    yield gate
    gate.set()


def test_a_disk_that_was_not_heard_of_while_the_engine_was_idle_is_used_on(
    start, gate, monkeypatch, caplog
):
    """The engine blocks while it is idle: nobody could have told it that the copy has ended."""
    engine = start()
    session = engine.scheduler._half.session
    for number in range(1, 4):
        engine.run(Request(number, prompt(20)))
    assert session.manager.num_in_flight == 1
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 600)
    monkeypatch.setattr(scheduler, "time", later)
    engine.run(Request(4, prompt(20)))
    assert not session.ssd.is_off
    gate.set()
    settle(engine, 5)
    assert session.take_counts()["demoted_blocks"] == 2
    assert "tier.off" not in caplog.text


def test_other_weights_at_the_same_path_miss(start):
    engine = start()
    engine.run(Request(1, prompt(20)))
    settle(engine, 1)
    engine = start(config={"rope_theta": 7})
    settle(engine, 1)
    engine.run(Request(2, prompt(20)))
    settle(engine, 2)
    counts = engine.scheduler._half.session.take_counts()
    assert not {"restored_blocks", "promoted_blocks"} & counts.keys()


@pytest.mark.parametrize(
    "change",
    [{"load_format": "dummy"}, {"checkpoint_loader": object()}, {"checkpoint_format": "MX"}],
)
def test_without_a_name_for_the_weights_there_is_no_ssd_tier(tmp_path, caplog, change):
    engine = Engine(tmp_path, **change).register()
    assert engine.workers[0]._half.session.ssd is None
    assert "set weight_version" in caplog.text
    engine.close()
