"""Cache events in vLLM's own form, for routers that follow a fleet's caches.

The events describe themselves: they carry tokens and parents, so a router that has never heard
of the engine's own blocks understands them. A block's name is the first 8 bytes of its key as an
unsigned integer of at least 2**32, never 0: all known consumers accept that, and the same block
has the same name in every tier.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheEvent, EventLog

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.request import Request

__all__ = ["EventFeed", "event_hash"]

_MEDIUM = {"host": "CPU", "ssd": "STORAGE"}
"""vLLM's own names; Dynamo drops events with the medium "SSD"."""

_MIN_HASH = 2**32
_MAX_JOBS = 4096
_MAX_ENDED_BYTES = 64 << 20
"""Of tokens: eight million of them."""

_RECORD_BYTES = 512
"""About what is kept of a request beside its tokens."""


def event_hash(key: BlockKey) -> int:
    """Return the name of a block in events: 64 bits, packed by msgpack in 9 bytes always."""
    value = int.from_bytes(key[:8], "big")
    return value if value >= _MIN_HASH else value + _MIN_HASH


class _Author(NamedTuple):
    """What events say of the request that wrote blocks."""

    tokens: Sequence[int]
    """vLLM's own list while the request runs, a copy once it has ended."""

    lora_id: int | None
    lora_name: str | None

    @property
    def num_bytes(self) -> int:
        """Size, once the request has ended."""
        return _RECORD_BYTES + 8 * len(self.tokens)


class EventFeed:
    """Turns what the manager logs into vLLM's events. Thread: the scheduler's.

    Blocks whose keys depend on more than tokens and LoRA (salts, media, a caller's namespace) are
    not announced: events have no field for that, and a router would send the wrong requests.
    """

    def __init__(self, *, enabled: bool, block_tokens: int) -> None:
        self.log = EventLog() if enabled else None
        self._block_tokens = block_tokens
        self._running: dict[str, _Author] = {}
        self._ended: dict[str, _Author] = {}
        """The latest: their blocks may become findable later."""

        self._num_ended_bytes = 0
        self._writers: dict[JobId, str] = {}

    def know(self, request: "Request") -> None:
        """Follow the tokens of `request`, unless its blocks are not announced."""
        if self.log is not None and _tells_all(request):
            lora = request.lora_request
            self._running[request.request_id] = _Author(
                request.all_token_ids,
                None if lora is None else lora.adapter_id,
                None if lora is None else lora.name,
            )

    def end(self, request: "Request") -> None:
        """Keep a copy of the tokens of `request`, and nothing else that vLLM has of it."""
        author = self._running.pop(request.request_id, None)
        if author is None:
            return
        self._drop_ended(request.request_id)
        author = author._replace(tokens=array("q", author.tokens))
        self._ended[request.request_id] = author
        self._num_ended_bytes += author.num_bytes
        while self._num_ended_bytes > _MAX_ENDED_BYTES:
            self._drop_ended(next(iter(self._ended)))

    def expect(self, job_id: JobId, request_id: str) -> None:
        """Note the request whose blocks plan `job_id` writes."""
        if self.log is not None:
            self._writers[job_id] = request_id
            if len(self._writers) > _MAX_JOBS:
                del self._writers[next(iter(self._writers))]

    def take(self) -> "Sequence[KVCacheEvent]":
        """Return all events since the last call."""
        if self.log is None:
            return ()
        translated = (self._one(event) for event in self.log.take())
        return [event for event in translated if event is not None]

    def _one(self, event: CacheEvent) -> "KVCacheEvent | None":
        from vllm.distributed import kv_events  # noqa: PLC0415 only where events are on

        if isinstance(event, BlocksStored):
            return self._stored(event)
        if isinstance(event, BlocksRemoved):
            hashes = [event_hash(key) for key in event.keys]
            return kv_events.BlockRemoved(block_hashes=hashes, medium=_MEDIUM[event.tier])
        return kv_events.AllBlocksCleared()

    def _stored(self, event: BlocksStored) -> "KVCacheEvent | None":
        from vllm.distributed import kv_events  # noqa: PLC0415 only where events are on

        request_id = self._writers.get(event.job_id, "")
        author = self._running.get(request_id) or self._ended.get(request_id)
        if author is None:
            return None
        start = event.first_block * self._block_tokens
        end = start + len(event.keys) * self._block_tokens
        return kv_events.BlockStored(
            block_hashes=[event_hash(key) for key in event.keys],
            parent_block_hash=None if event.parent is None else event_hash(event.parent),
            token_ids=list(author.tokens[start:end]),
            block_size=self._block_tokens,
            lora_id=author.lora_id,
            medium=_MEDIUM[event.tier],
            lora_name=author.lora_name,
        )

    def _drop_ended(self, request_id: str) -> None:
        if author := self._ended.pop(request_id, None):
            self._num_ended_bytes -= author.num_bytes


def _tells_all(request: "Request") -> bool:
    """Return whether tokens and LoRA alone identify the request's blocks."""
    ours = (request.kv_transfer_params or {}).get("flexkv", {})  # readable, or it saved nothing
    has_namespace = ours.get("namespace") is not None
    return request.cache_salt is None and not request.mm_features and not has_namespace
