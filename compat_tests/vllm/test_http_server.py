"""vLLM's OpenAI server with FlexKV: what a client, a Prometheus and a router see of it.

One server goes through one story; the tests look at what was written down on the way.
"""

import time
from typing import Any, NamedTuple

import msgspec
import psutil
import pytest
from http_server import HOST, HttpServer, cached_tokens, free_port
from processes import listeners

from flexkv_core.metrics import METRICS

PAGE_TOKENS = 128
BLOCK_BYTES = PAGE_TOKENS * 5 * 2 * 2 * 64 * 4  # 5 layers, 2 heads, K and V, 64 float32
CAPACITY = 30
MIN_HASH = 2**32


def text(topic):
    """Return a message of about 1400 tokens that begins like no other."""
    return " ".join(f"{topic} has page {page} of the report" for page in range(150))


class Router:
    """Subscribes to cache events, as routers do. vLLM's publisher connects to it."""

    def __init__(self):
        import zmq

        self.endpoint = f"tcp://{HOST}:{free_port()}"
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.bind(self.endpoint)
        self._socket.subscribe(b"kv")

    def take(self, is_last, limit_s=60.0):
        """Return events, as the maps that were published, up to the first that `is_last`."""
        events, deadline = [], time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self._socket.poll(timeout=1000):
                topic, _, payload = self._socket.recv_multipart()
                assert topic == b"kv"
                _, batch, rank = msgspec.msgpack.decode(payload)
                assert rank == 0
                events += batch
                if any(is_last(event) for event in batch):
                    return events
        raise TimeoutError(f"the last event did not come; got {events[-3:]}")

    def close(self):
        self._socket.close(linger=0)


class Story(NamedTuple):
    """What was seen."""

    cold: Any
    hit: Any
    salted: Any
    after_reset: Any
    metrics_of_hit: dict[str, Any]
    metrics: dict[str, Any]
    events: list[dict[str, Any]]
    num_events_of_reset: int
    listeners_before: set[tuple[str, int]]
    listeners_after: set[tuple[str, int]]
    log: str


@pytest.fixture(scope="module")
def router():
    router = Router()
    yield router
    router.close()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory, router):
    server = HttpServer(
        model("oracle"),
        tmp_path_factory.mktemp("server"),
        {
            "kv_connector": "flexkv",
            "kv_connector_extra_config": {"cpu_cache_gb": CAPACITY * BLOCK_BYTES / 2**30},
        },
        {"GLOO_SOCKET_IFNAME": "lo"},
        kv_events_config={
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": router.endpoint,
            "topic": "kv",
        },
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def story(server, router):
    listeners_before = listeners(server.pid)
    cold = server.chat(text("tea"))
    server.post("/reset_prefix_cache")
    hit = server.chat(text("tea"))
    metrics_of_hit = server.metrics()
    salted = server.chat(text("tea"), cache_salt="of somebody else")
    for topic in ("rain", "iron", "moss"):
        server.chat(text(topic))
    metrics = server.metrics()
    before_reset = router.take(lambda event: event["type"] == "BlockRemoved" and is_ours(event))
    server.post("/reset_prefix_cache?reset_external=true")
    after_reset = server.chat(text("tea"))
    after = router.take(lambda event: event["type"] == "BlockStored" and is_ours(event))
    return Story(
        cold,
        hit,
        salted,
        after_reset,
        metrics_of_hit,
        metrics,
        before_reset + after,
        len(after),
        listeners_before,
        listeners(server.pid),
        server.log.read_text(errors="replace"),
    )


def is_ours(event):
    return event.get("medium") == "CPU"
