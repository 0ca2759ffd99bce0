"""Dynamo's `KvRouter`, and the worker that relays an engine's events to it, in one process."""

import sys
from pathlib import Path

from environment import safe_environment
from http_server import HOST
from indexer import Overlap, Worker
from json_child import JsonChild
from vllm.distributed.kv_events import ZmqEventPublisher

HERE = Path(__file__).parent
_ADDRESSES = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")


class KvRouterProcess:
    """Follows one worker. Needs neither etcd nor NATS, and opens ports that the system chooses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: JsonChild | None = None

    def follow(self, worker: Worker, publisher: ZmqEventPublisher) -> None:
        """Start with a worker."""
        assert self._child is None, "one worker only"
        events = publisher.get_publisher_config().endpoint
        script = HERE / "kv_router_child.py"
        command = [sys.executable, script, events, str(worker.page_tokens)]
        env = safe_environment() | dict.fromkeys(_ADDRESSES, HOST)
        env["DYN_FILE_KV"] = str(self._folder / "discovery")
        self._child = JsonChild(command, self._folder, env)

    def forget(self, worker: Worker) -> None:
        """End, with all that is known."""
        self.close()

    def overlap(self, worker: Worker, tokens: list[int], lora_name: str | None = None) -> Overlap:
        """Return what the worker has of a prompt, as far as its events are taken in."""
        [told] = self._child._call("overlap", tokens=tokens, lora_name=lora_name)
        blocks = (told[f"{tier}_blocks"] for tier in ("device", "host_pinned", "disk"))
        return Overlap(*(num_blocks * worker.page_tokens for num_blocks in blocks))

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None
