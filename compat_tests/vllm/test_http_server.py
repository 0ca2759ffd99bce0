"""vLLM's OpenAI server with FlexKV: what a client, a Prometheus and a router see of it.

One server goes through one story; the tests look at what was noted on the way.
"""

import queue
import threading
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
from http_server import HOST, HttpServer, cached_tokens, free_port
from processes import listeners

from flexkv_core.metrics import METRICS

BLOCK_TOKENS = 128
BLOCK_BYTES = BLOCK_TOKENS * 5 * 2 * 2 * 64 * 4  # 5 layers, 2 heads, K and V, 64 float32
NUM_BLOCKS = 16
"""Full blocks of one message."""

CAPACITY_BLOCKS = 34
"""Of the host tier: two messages fit, and a little of a third."""


def message(topic):
    """Return a message of about 2100 tokens; two of them share the chat template's head only."""
    return " ".join(f"{topic} has page {page} of the report" for page in range(150))


class Router:
    """Follows cache events as routers do. vLLM's publisher connects to a loopback address.

    A socket that nobody reads from does not even subscribe, so a thread reads from the start.
    """

    def __init__(self):
        self.endpoint = f"tcp://{HOST}:{free_port()}"
        self._events = queue.Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def take_until(self, is_last):
        """Return events, as the maps they are published as, up to the first that `is_last`."""
        events = []
        while not (events and is_last(events[-1])):
            events.append(self._events.get(timeout=60))
        return events

    def close(self):
        self._stopped.set()
        self._thread.join()

    def _receive(self):
        import zmq

        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.bind(self.endpoint)
            subscriber.subscribe(b"kv")
            while not self._stopped.is_set():
                if subscriber.poll(timeout=200):
                    _, _, payload = subscriber.recv_multipart()
                    _, batch, _ = msgspec.msgpack.decode(payload)
                    for event in batch:
                        self._events.put(event)


@pytest.fixture(scope="module")
def router():
    router = Router()
    yield router
    router.close()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory, router):
    options = {"cpu_cache_gb": CAPACITY_BLOCKS * BLOCK_BYTES / 2**30}
    server = HttpServer(
        model("oracle"),
        tmp_path_factory.mktemp("server"),
        {"kv_connector": "flexkv", "kv_connector_extra_config": options},
        max_num_batched_tokens=1024,  # so that a message is saved in several steps
        kv_events_config={
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": router.endpoint,
            "topic": "kv",
        },
    )
    yield server
    server.close()


class Story(NamedTuple):
    """What was seen."""

    tokens: list[int]
    """The first message, as the server tokenizes it."""

    cold: dict[str, Any]
    hit: dict[str, Any]
    salted: dict[str, Any]
    after_reset: dict[str, Any]
    metrics: dict[str, Any]
    """After the hit."""

    metrics_after_eviction: dict[str, Any]
    cold_events: list[dict[str, Any]]
    events: list[dict[str, Any]]
    """From the engine's own reset, over the hit and the eviction, to the reset of everything."""

    events_after_reset: list[dict[str, Any]]
    listeners: set[tuple[str, int]]
    listeners_at_end: set[tuple[str, int]]


@pytest.fixture(scope="module")
def story(server, router):
    ports = listeners(server.pid)
    tea = server.post("/tokenize", {"messages": [{"role": "user", "content": message("tea")}]})
    cold = server.chat(message("tea"))
    server.post("/reset_prefix_cache")
    hit = server.chat(message("tea"))
    metrics = server.metrics()
    salted = server.chat(message("tea"), cache_salt="of somebody else")
    server.chat(message("rain"))
    metrics_after_eviction = server.metrics()
    server.post("/reset_prefix_cache?reset_external=true")
    after_reset = server.chat(message("rain"))
    return Story(
        tokens=tea["tokens"],
        cold=cold,
        hit=hit,
        salted=salted,
        after_reset=after_reset,
        metrics=metrics,
        metrics_after_eviction=metrics_after_eviction,
        cold_events=router.take_until(is_clear),
        events=router.take_until(is_clear),
        events_after_reset=router.take_until(is_stored_by_us),
        listeners=ports,
        listeners_at_end=listeners(server.pid),
    )


def is_clear(event):
    return event["type"] == "AllBlocksCleared"


def is_stored_by_us(event):
    return event["type"] == "BlockStored" and event["medium"] == "CPU"


def ours(events, kind):
    return [event for event in events if event["type"] == kind and event["medium"] == "CPU"]


def hashes(events):
    return [block for event in events for block in event["block_hashes"]]


def value(metrics, name, **labels):
    (sample,) = [
        sample
        for sample in metrics[name].samples
        if sample.labels.items() >= labels.items() and not sample.name.endswith("_created")
    ]
    return sample.value


def test_the_client_is_told_how_many_tokens_came_from_the_host_tier(story):
    assert cached_tokens(story.cold) == 0
    assert cached_tokens(story.hit) == NUM_BLOCKS * BLOCK_TOKENS


def test_the_answer_is_the_same(story):
    cold, hit = (answer["choices"][0]["token_ids"] for answer in (story.cold, story.hit))
    assert cold == hit
    assert len(set(cold)) > 3


def test_another_salt_hits_nothing(story):
    assert cached_tokens(story.salted) == 0


def test_a_reset_with_external_caches_forgets_the_host_tier(story):
    assert cached_tokens(story.after_reset) == 0


def test_every_metric_of_the_table_is_there_with_its_type(story):
    types = {metric.name: metric.kind for metric in METRICS.values()}
    assert types == {name: story.metrics[f"flexkv:{name}"].type for name in types}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("match_hit_blocks", NUM_BLOCKS),
        ("match_miss", 1),
        ("load_tokens", NUM_BLOCKS * BLOCK_TOKENS),
        ("load_bytes", NUM_BLOCKS * BLOCK_BYTES),
        ("load_failed_blocks", 0),
        ("save_tokens", NUM_BLOCKS * BLOCK_TOKENS),
        ("save_bytes", NUM_BLOCKS * BLOCK_BYTES),
        ("save_failed_blocks", 0),
        ("evicted_blocks", 0),
        ("switched_off", 0),
        ("host_capacity_blocks", CAPACITY_BLOCKS),
        ("host_used_blocks", NUM_BLOCKS),
    ],
)
def test_metrics_count_what_happened(story, name, expected):
    assert expected == value(story.metrics, f"flexkv:{name}", engine="0", model_name="tiny")


@pytest.mark.parametrize("name", ["load_seconds", "save_seconds"])
def test_metrics_say_how_long_copies_took(story, name):
    assert 0 < value(story.metrics, f"flexkv:{name}") < 5


def test_metrics_follow_an_eviction(story):
    metrics = story.metrics_after_eviction
    assert value(metrics, "flexkv:evicted_blocks") == 3 * NUM_BLOCKS - CAPACITY_BLOCKS
    assert value(metrics, "flexkv:host_used_blocks") == CAPACITY_BLOCKS
    assert value(metrics, "flexkv:save_tokens") == 3 * NUM_BLOCKS * BLOCK_TOKENS


def test_vllm_itself_counts_the_hit_as_external_and_from_host_memory(story):
    hit = cached_tokens(story.hit)
    by_source = "vllm:prompt_tokens_cached_by_source"
    assert hit == value(story.metrics, "vllm:external_prefix_cache_hits")
    assert hit == value(story.metrics, by_source, source="host")
    assert value(story.metrics, by_source, source="device") == 0


def test_a_stored_block_is_announced_with_its_tokens(story):
    stored = ours(story.cold_events, "BlockStored")
    told = [token for event in stored for token in event["token_ids"]]
    assert told == story.tokens[: NUM_BLOCKS * BLOCK_TOKENS]
    assert {event["block_size"] for event in stored} == {BLOCK_TOKENS}
    for event in stored:
        assert len(event["token_ids"]) == BLOCK_TOKENS * len(event["block_hashes"])


def test_every_announced_block_but_the_first_has_a_parent_that_was_announced(story):
    stored = ours(story.cold_events, "BlockStored")
    assert len(stored) > 1
    assert stored[0]["parent_block_hash"] is None
    for before, after in pairwise(stored):
        assert after["parent_block_hash"] == before["block_hashes"][-1]


def test_pages_have_the_names_that_vllm_gives_those_on_its_device(story):
    names = hashes(ours(story.cold_events, "BlockStored"))
    assert len(set(names)) == NUM_BLOCKS
    theirs = [event for event in story.cold_events if event.get("medium") == "GPU"]
    assert set(names) <= set(hashes(theirs))


def test_a_block_has_the_same_name_whenever_it_is_stored(story):
    before = hashes(ours(story.events, "BlockStored"))
    after = hashes(ours(story.events_after_reset, "BlockStored"))
    assert after
    assert set(before) >= set(after)


def test_a_hit_is_announced_again_where_the_engine_has_cleared_all_before(story):
    """Routers drop every tier of an engine with that event, and ours is still there."""
    tea = hashes(ours(story.cold_events, "BlockStored"))
    assert hashes(ours(story.events, "BlockStored"))[: len(tea)] == tea


def test_salted_blocks_are_announced_under_other_names_with_their_salt(story):
    [salted] = [
        event
        for event in ours(story.events, "BlockStored")
        if event.get("extra_keys", [None])[0] == ["of somebody else"]
    ]
    assert salted["token_ids"] == story.tokens[: len(salted["token_ids"])]
    assert not set(salted["block_hashes"]) & set(hashes(ours(story.cold_events, "BlockStored")))


def test_evicted_blocks_are_announced_as_removed(story):
    removed = hashes(ours(story.events, "BlockRemoved"))
    tea = hashes(ours(story.cold_events, "BlockStored"))
    num_evicted = 3 * NUM_BLOCKS - CAPACITY_BLOCKS
    assert set(tea[-num_evicted:]) == set(removed)


def test_a_reset_clears_nothing_that_the_engine_has_not_cleared(story):
    assert not any(is_clear(event) for event in story.events_after_reset)


def test_nobody_listens_but_on_the_loopback_interface(story, server):
    assert {address for address, _ in story.listeners_at_end} == {HOST}
    assert (HOST, server.port) in story.listeners_at_end


def test_serving_opens_no_port(story):
    assert story.listeners == story.listeners_at_end


def test_neither_side_of_the_connector_opens_a_socket(model):
    from scheduler_harness import Shape, SimulatedEngine, base_config

    base = base_config(model("oracle"), {"kv_connector": "flexkv"})
    before = psutil.Process().net_connections("all")
    engine = SimulatedEngine(base, Shape(tensor_parallel=2, mla=True))
    for _ in range(2):
        engine.add(list(range(43)), 4)
        engine.drain()
        assert engine.reset(running=False, connector=False)
    during = psutil.Process().net_connections("all")
    engine.close()
    assert engine.events["external tokens"] > 0
    assert set(before) == set(during)
