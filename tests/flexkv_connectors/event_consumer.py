"""Consumers of events as routers are: they read frames, and know nothing of who has sent them."""

from contextlib import contextmanager

import msgspec
import zmq

DEADLINE_MS = 30_000
END = b"\xff" * 8


@contextmanager
def opened(kind, endpoint, **options):
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.rcvtimeo = DEADLINE_MS
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(endpoint)
        yield socket


def ask(endpoint, first=0):
    """Return the topic, number and content of each batch from a number on."""
    with opened(zmq.DEALER, endpoint) as socket:
        socket.send_multipart([b"", first.to_bytes(8, "big")])
        answers = iter(socket.recv_multipart, [b"", b"", END, b""])
        return [read(frames) for blank, *frames in answers]


def read(frames):
    topic, number, batch = frames
    return topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(batch)
