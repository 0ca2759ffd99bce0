"""Dynamo's indexer in a process of its own, and the workers whose cache events it follows.

Events travel as vLLM's own publisher sends them, over sockets that only this machine has. The
indexer offers no choice of the interface that it answers on: it is all of them.
"""

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from environment import safe_environment
from http_server import HOST, free_port
from vllm.distributed.kv_events import (
    BlockStored,
    KVCacheEvent,
    KVEventBatch,
    ZmqEventPublisher,
)

HERE = Path(__file__).parent
MEDIA = ("GPU", "CPU", "STORAGE")
LIMIT_S = 30.0
_FIRST_MARK = 1 << 31
_numbers = itertools.count(1)


class Overlap(NamedTuple):
    """How many leading tokens a worker has; a tier counts on from where the one above it ends."""

    gpu: int = 0
    cpu: int = 0
    disk: int = 0


class Indexer:
    """One process that follows any number of workers. Starts in a fraction of a second."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / "indexer.log"
        command = [sys.executable, HERE / "indexer_child.py", "--port", str(self._port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--threads", "1"],
                cwd=folder,
                env=safe_environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            wait_until(self._answers, "the indexer answers")
            undo.pop_all()

    def follow(self, worker: "Worker", publisher: ZmqEventPublisher) -> None:
        """Take in what a publisher says of a worker."""
        config = publisher.get_publisher_config()
        self._ask(
            "/register",
            instance_id=worker.number,
            endpoint=config.endpoint,
            replay_endpoint=config.replay_endpoint,
            model_name=worker.model,
            block_size=worker.page_tokens,
        )

    def forget(self, worker: "Worker") -> None:
        """Follow a worker no more, and forget all that it has said."""
        self._ask("/unregister", instance_id=worker.number, model_name=worker.model)

    def overlap(self, worker: "Worker", tokens: list[int], **identity: str) -> Overlap:
        """Return what a worker has of a prompt, as far as its events are taken in."""
        told = self._ask("/query", token_ids=tokens, model_name=worker.model, **identity)
        found = told["instances"].get(str(worker.number))
        return Overlap(found["gpu"], found["cpu"], found["disk"]) if found else Overlap()

    def log(self) -> str:
        """Return what the process has printed."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, path: str, **content: Any) -> Any:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=LIMIT_S)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", path, json.dumps(content), headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        assert answer.status < http.HTTPStatus.BAD_REQUEST, (path, content, body)
        return json.loads(body)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log()
        with contextlib.suppress(OSError), socket.create_connection((HOST, self._port)):
            return True
        return False


class Router(Protocol):
    """What follows events and is asked for overlaps; `Indexer` says what each method does."""

    def follow(self, worker: "Worker", publisher: ZmqEventPublisher) -> None: ...
    def forget(self, worker: "Worker") -> None: ...
    def overlap(self, worker: "Worker", tokens: list[int], **identity: str) -> Overlap: ...


class Worker:
    """An engine as a router knows it: a stream of events under a number and a model's name.

    Args:
        router: Follows it from now on.
        page_tokens: What the router is told of the size of an engine's block.
        publisher: Has published nothing yet.
        model: Its own by default.
    """

    def __init__(
        self, router: Router, page_tokens: int, publisher: ZmqEventPublisher, model: str = ""
    ) -> None:
        self.number = next(_numbers)
        self.model = model or f"model {self.number}"
        self.page_tokens = page_tokens
        self._router = router
        self._marks = itertools.count(_FIRST_MARK, page_tokens)
        self.follow(publisher)

    def follow(self, publisher: ZmqEventPublisher) -> None:
        """Let the router follow a publisher that has published nothing yet."""
        self._publisher = publisher
        self._router.follow(self, publisher)
        self.wait()

    def leave(self) -> None:
        """Let the router forget the worker."""
        self._router.forget(self)

    def publish(self, *events: KVCacheEvent) -> None:
        """Publish a batch as vLLM's scheduler does."""
        self._publisher.publish(KVEventBatch(ts=time.time(), events=list(events)))

    def wait(self) -> None:
        """Wait until the router has taken in all that has been published.

        It takes in one batch after the other, but each tier by itself: so each is to know a block
        that was published last. That is said again and again: a new subscriber misses some of it.
        """
        for medium in MEDIA:
            mark = self._next_mark(medium)

            def knows(mark: BlockStored = mark) -> bool:
                self.publish(mark)
                return self._router.overlap(self, mark.token_ids) != Overlap()

            wait_until(knows, f"the router has taken in what was said of {medium}")

    def overlap(self, tokens: list[int], **identity: str) -> Overlap:
        """Return what the router believes that the worker has of a prompt, by now."""
        self.wait()
        return self._router.overlap(self, tokens, **identity)

    def _next_mark(self, medium: str) -> BlockStored:
        """Return an event of a block of tokens that no prompt has."""
        first = next(self._marks)
        return BlockStored(
            block_hashes=[first << 31],
            parent_block_hash=None,
            token_ids=list(range(first, first + self.page_tokens)),
            block_size=self.page_tokens,
            lora_id=None,
            medium=medium,
            lora_name=None,
        )


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Ask until something is so."""
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.005)


def make_publisher(*, replays: bool = True) -> ZmqEventPublisher:
    """Return vLLM's own publisher; it binds sockets that need neither a port nor a file."""
    name = f"ipc://@flexkv-test-{os.getpid()}-{next(_numbers)}"
    return ZmqEventPublisher(0, name, replay_endpoint=f"{name}-replay" if replays else None)


class LossySocket:
    """What a publisher sends through; may be told to lose some of it."""

    def __init__(self, publisher: ZmqEventPublisher) -> None:
        self._queue = publisher._event_queue
        self._socket = publisher._pub
        self.num_to_lose = 0
        publisher._pub = self

    def lose_next(self) -> None:
        """Lose the batch that is published next."""
        self._queue.join()
        self.num_to_lose = 1

    def send_multipart(self, frames: tuple[bytes, ...]) -> None:
        """Send a batch, or lose it."""
        if self.num_to_lose:
            self.num_to_lose -= 1
        else:
            self._socket.send_multipart(frames)

    def close(self, linger: int) -> None:
        """Close the socket."""
        self._socket.close(linger=linger)
