"""What routers are told of vLLM's host memory: the same as of the tier below it, and as of ours."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.events import OffloadingEventsTracker

from flexkv_connectors.announcer import Announcer, BlockPages
from flexkv_connectors.fault_barrier import FaultBarrier, nothing
from flexkv_connectors.vllm.events import events_of, kind_of, pages_of
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine
from flexkv_core.block.types import BlockKey
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared
from flexkv_core.metrics import Recorder

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        GroupOffloadConfig,
        RequestOffloadState,
    )
    from vllm.v1.kv_offload.base import OffloadingEvent, OffloadingManager, OffloadKey
    from vllm.v1.request import Request

__all__ = ["EventsTracker", "announce_offered"]


def _chunk_pages(req: "Request", group: "GroupOffloadConfig", chunk_idx: int) -> BlockPages | None:
    """Return what vLLM would tell of one block on its device.

    Returns:
        None if its name does not stand for all tokens before it: that of a window or a state. No
        router could use it.
    """
    if group.sliding_window_size_in_chunks is not None:
        return None
    spec = group.kv_event_group_spec
    kind = msgspec.structs.replace(
        kind_of(req, group.tokens_per_block), group=(group.group_idx, *spec)
    )
    start = chunk_idx * group.tokens_per_chunk
    hash_tokens = group.tokens_per_chunk // group.hashes_per_chunk
    return pages_of(req, kind, range(start, start + group.tokens_per_chunk), hash_tokens)


def announce_offered(engine: OffloadingEngine, status: "RequestOffloadState") -> None:
    """Announce what the tier below has of a request and never was told."""
    assert engine.announcer is not None
    offered, request = {*engine.offered}, status.req
    for group, state in zip(status.config.kv_group_configs, status.group_states, strict=True):
        for chunk_idx, key in enumerate(state.offload_keys):
            if key in offered:
                block_key = engine.block_key(key, request.request_id)
                describe = partial(_described, request, group, chunk_idx)
                engine.announcer.find("ssd", [block_key], describe)


def _described(
    req: "Request", group: "GroupOffloadConfig", chunk_idx: int, _: range
) -> list[BlockPages]:
    pages = _chunk_pages(req, group, chunk_idx)
    return [] if pages is None else [pages]


class EventsTracker(OffloadingEventsTracker):
    """Stands in the place of vLLM's, which says neither salts nor media, nor what is on SSD.

    Thread: the scheduler's.
    """

    announcer: Announcer
    recorder: Recorder
    barrier: FaultBarrier
    manager: "OffloadingManager"

    @classmethod
    def of(
        cls,
        announcer: Announcer,
        recorder: Recorder,
        barrier: FaultBarrier,
        manager: "OffloadingManager",
    ) -> "EventsTracker":
        """Return a tracker of `manager`'s; what cannot be said counts in `recorder`."""
        tracker = cls.__new__(cls)
        tracker.announcer, tracker.recorder, tracker.barrier = announcer, recorder, barrier
        tracker.manager = manager
        return tracker

    @override
    def record_store(
        self,
        req: "Request",
        group_config: "GroupOffloadConfig",
        chunk_idx: int,
        offload_key: "OffloadKey",
    ) -> None:
        self.barrier.run(partial(self._expect, req, group_config, chunk_idx, offload_key), nothing)

    @override
    def record_lookup(
        self,
        req: "Request",
        group_config: "GroupOffloadConfig",
        chunk_idx: int,
        offload_key: "OffloadKey",
    ) -> None:
        self.barrier.run(partial(self._find, req, group_config, chunk_idx, offload_key), nothing)

    @override
    def record_partial_store(
        self,
        req: "Request",
        group_config: "GroupOffloadConfig",
        boundary_tokens: int,
        offload_key: "OffloadKey",
    ) -> None:
        self.recorder.add("events_unsaid_blocks")

    @override
    def record_partial_lookup(
        self,
        req: "Request",
        group_config: "GroupOffloadConfig",
        boundary_tokens: int,
        offload_key: "OffloadKey",
    ) -> None:
        """Do nothing: the rest of a state is not told."""

    @override
    def take_events(self, events: "Iterable[OffloadingEvent]") -> "Iterable[KVCacheEvent]":
        return self.barrier.run(partial(self._take, events), self._take_back)

    @override
    def reset(self) -> None:
        for _ in self.manager.take_events():
            pass  # of before: after what is cleared here, it would be told as new
        self.announcer.log.append(CacheCleared())

    def _expect(
        self, req: "Request", group: "GroupOffloadConfig", chunk_idx: int, key: "OffloadKey"
    ) -> None:
        if pages := _chunk_pages(req, group, chunk_idx):
            self.announcer.expect([BlockKey(key)], [pages])
        else:
            self.recorder.add("events_unsaid_blocks")

    def _find(
        self, req: "Request", group: "GroupOffloadConfig", chunk_idx: int, key: "OffloadKey"
    ) -> None:
        describe = partial(_described, req, group, chunk_idx)  # only what is new: waits look often
        self.announcer.find("host", [BlockKey(key)], describe)

    def _take_back(self) -> "list[KVCacheEvent]":
        """Let no router send requests to a cache that is off."""
        no_events: list[KVCacheEvent] = []
        return FaultBarrier("events").run(
            lambda: [*events_of(self.announcer.take_back())], lambda: no_events
        )

    def _take(self, events: "Iterable[OffloadingEvent]") -> "list[KVCacheEvent]":
        for event in events:
            keys = [BlockKey(key) for key in event.keys]
            kind = BlocksRemoved if event.removed else BlocksStored
            self.announcer.log.append(kind("host", keys))
        return [*events_of(self.announcer.take())]
