"""Publishes what routers are told, for engines that have no publisher for connectors.

On the wire it is what vLLM's publisher sends: a topic, the batch's number, and the batch. Hashes
are integers of 64 bits, medium and tokens are always there, and a batch always has three items:
that is what both Dynamo and llm-d read.
"""

import importlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import msgspec

from flexkv_connectors.announcer import MEDIA, Announcement, PagesRemoved, PagesStored, names_of
from flexkv_core.config import CacheConfig
from flexkv_core.errors import ConfigError
from flexkv_core.event_options import EventOptions
from flexkv_core.excerpt import clipped
from flexkv_core.metrics import Recorder

__all__ = ["EventPublisher", "require_no_events"]

logger = logging.getLogger(__name__)

_NUMBER_BYTES = 8
_END = (-1).to_bytes(_NUMBER_BYTES, "big", signed=True)
"""In the place of a number: nothing more was missed."""


def require_no_events(cache: CacheConfig, instead: str) -> CacheConfig:
    """Return the options of an engine whose events we do not publish ourselves.

    Raises:
        ConfigError: They ask us to.
    """
    if cache.events is not None:
        msg = f"events is set, but FlexKV publishes none behind this engine: {instead}"
        raise ConfigError(msg)
    return cache


class EventPublisher:
    """Sends batches of events to whoever listens, and again to who has missed some.

    Thread: the scheduler's, where nothing blocks. Replays have one of their own, since an engine
    that is idle calls nobody.
    """

    def __init__(self, options: EventOptions, dp_rank: int, recorder: Recorder) -> None:
        """Open the sockets.

        Args:
            options: Where, and in which form.
            dp_rank: Which of the engines that serve one deployment this is; each has ports of its
                own, counted up from the first one's.
            recorder: Where counts go.

        Raises:
            ConfigError: They cannot be opened.
        """
        self._zmq = _import_zmq()
        self._options = options
        self._dp_rank = dp_rank
        self._recorder = recorder
        self._encode = msgspec.msgpack.Encoder().encode
        # From the clock: a consumer ignores what a restarted engine sends under smaller numbers.
        self._numbers = itertools.count(time.time_ns() // 1000)
        self._sent: deque[tuple[bytes, bytes]] = deque(maxlen=options.buffer_steps)
        self._lock = threading.Lock()
        self._context = self._zmq.Context()
        try:
            self._publisher = self._open(self._zmq.PUB, "endpoint", options.endpoint)
            self._publisher.setsockopt(self._zmq.XPUB_NODROP, 1)
            if options.replay_endpoint is not None:
                router = self._open(self._zmq.ROUTER, "replay_endpoint", options.replay_endpoint)
                threading.Thread(target=self._replay, args=[router], daemon=True).start()
        except ConfigError:
            self._context.destroy()
            raise

    def publish(self, announcements: Iterable[Announcement]) -> None:
        """Send what was announced as one batch, if there is anything."""
        events = [self._event_of(said) for said in announcements]
        if not events:
            return
        number = next(self._numbers).to_bytes(_NUMBER_BYTES, "big")
        batch = self._encode([time.time(), events, self._dp_rank])
        with self._lock:
            self._sent.append((number, batch))
        self._send([self._options.topic.encode(), number, batch])

    def close(self) -> None:
        """Close everything; consumers that have not got a batch yet will not get it."""
        self._publisher.close()
        self._context.term()  # which ends the thread of replays, and waits for it

    def _event_of(self, said: Announcement) -> object:
        fields = _stored(said) if isinstance(said, PagesStored) else _removed(said)
        return fields if self._options.format == "map" else list(fields.values())

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._publisher.send_multipart(frames, self._zmq.DONTWAIT)
        except self._zmq.Again:
            self._recorder.add("events_slow_consumers")
            # Once more, and from now on, without those for whom enough is waiting already.
            self._publisher.setsockopt(self._zmq.XPUB_NODROP, 0)
            self._publisher.send_multipart(frames, self._zmq.DONTWAIT)
            self._publisher.setsockopt(self._zmq.XPUB_NODROP, 1)

    def _replay(self, router: Any) -> None:  # noqa: ANN401 zmq.Socket
        """Answer whoever asks for batches from a number on, until the context ends."""
        try:
            with suppress(self._zmq.ContextTerminated):
                while True:
                    consumer, *question = router.recv_multipart()
                    for answer in self._answers(question):
                        router.send_multipart([consumer, *answer])
        finally:
            router.close()  # `close` waits for this

    def _answers(self, question: list[bytes]) -> list[list[bytes]]:
        """Return the frames of each batch that was asked for, and of the end."""
        if [len(frame) for frame in question] != [0, _NUMBER_BYTES]:
            return []
        blank, first = question
        topic = self._options.topic.encode()
        with self._lock:
            kept = list(self._sent)
        missed = [[blank, topic, *sent] for sent in kept if sent[0] >= first]
        return [*missed, [blank, b"", _END, b""]]

    def _open(self, kind: int, name: str, endpoint: str) -> Any:  # noqa: ANN401 zmq.Socket
        """Return a socket that drops what is not sent when it closes.

        Raises:
            ConfigError: The endpoint is not one, or in use.
        """
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.sndhwm = self._options.buffer_steps + 1  # all that is kept, and the end
        is_here = kind == self._zmq.ROUTER or "*" in endpoint or endpoint.startswith("ipc:")
        place = _of_rank(endpoint, self._dp_rank) if is_here else endpoint
        try:
            (socket.bind if is_here else socket.connect)(place)
        except self._zmq.ZMQError as error:
            msg = (
                f"{name} of events is {clipped(place)}, which cannot be opened "
                f"({error.strerror}): expected an address such as 'tcp://*:5557' that is free"
            )
            raise ConfigError(msg) from error
        logger.info("events.on %s=%s %s", name, clipped(place), "bound" if is_here else "connected")
        return socket


def _of_rank(endpoint: str, dp_rank: int) -> str:
    """Return the endpoint of a data-parallel rank: a port counted up, or a name with a number."""
    address, _, port = endpoint.rpartition(":")
    if not dp_rank:
        return endpoint
    return f"{address}:{int(port) + dp_rank}" if port.isdecimal() else f"{endpoint}-{dp_rank}"


def _stored(said: PagesStored) -> dict[str, object]:
    """Return the fields of an event, in their order on the wire."""
    kind = said.blocks[0].kind
    fields: dict[str, object] = {
        "type": "BlockStored",
        "block_hashes": names_of(said),
        "parent_block_hash": said.blocks[0].parent,
        "token_ids": [token for block in said.blocks for token in block.token_ids],
        "block_size": kind.page_tokens,
        "lora_id": kind.lora_id,
        "medium": MEDIA[said.tier],
        "lora_name": kind.lora_name,
        "extra_keys": None,
    }
    return fields if kind.cache_salt is None else fields | {"cache_salt": kind.cache_salt}


def _removed(said: PagesRemoved) -> dict[str, object]:
    """Return the fields of an event, in their order on the wire."""
    return {
        "type": "BlockRemoved",
        "block_hashes": names_of(said),
        "medium": MEDIA[said.tier],
    }


def _import_zmq() -> Any:  # noqa: ANN401 a module
    """Return ZeroMQ, which nobody without events needs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("zmq")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "events are published with pyzmq, which is not installed: install "
            "flexkv-connectors[events], or leave events out"
        ) from error
