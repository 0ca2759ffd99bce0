"""The class that vLLM calls: its own offloading, with our options and our tier below it."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import vllm
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from flexkv_connectors.fault_barrier import FaultBarrier, nothing, refusals_in_one_line
from flexkv_connectors.versions import require_supported
from flexkv_connectors.vllm import log_like_vllm
from flexkv_connectors.vllm.adapter_loads import follow_adapters
from flexkv_connectors.vllm.offloading.drift import tails_of
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine
from flexkv_connectors.vllm.offloading.events import EventsTracker, announce_offered
from flexkv_connectors.vllm.offloading.idle import IdleConnector
from flexkv_connectors.vllm.offloading.options import (
    read_options,
    region_bytes,
    replaces_spec,
    row_bytes,
    translated,
    with_tier,
)
from flexkv_connectors.vllm.offloading.region import forget_name, is_there, why_no_room
from flexkv_connectors.vllm.offloading.requests import Requests
from flexkv_connectors.vllm.offloading.support import (
    interval_to_share,
    why_no_ssd,
    why_not,
    why_untried,
)
from flexkv_connectors.vllm.old_pages import OldPages

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        RequestOffloadState,
    )
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["FlexKVOffloadedByDevice", "FlexKVOffloadingConnector"]

logger = logging.getLogger(__name__)


class FlexKVOffloadingConnector(OffloadingConnector):
    """vLLM's OffloadingConnector, with FlexKV's options, and FlexKV's tier below its host memory.

    vLLM makes one instance in the scheduler's process and one in each worker. Where its offloading
    cannot be used, it gets an `IdleConnector` instead, in all processes.
    """

    _engine: OffloadingEngine
    """Set by `__new__`: what `__init__` is called with is vLLM's."""

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> "FlexKVOffloadingConnector | IdleConnector":
        """Decide before anything of vLLM's is built, so that no rank fails while others wait."""
        log_like_vllm()
        with refusals_in_one_line():
            require_supported("vllm", vllm.__version__)
            cache = read_options(vllm_config)
            engine = OffloadingEngine(vllm_config, kv_cache_config, cache)
            reason = cls._why_not(engine, role)
        if reason is None:
            chosen: FlexKVOffloadingConnector = super().__new__(cls)
            chosen._engine = engine
            return chosen
        FaultBarrier().switch_off(reason)
        return IdleConnector(vllm_config, role, kv_cache_config)

    @refusals_in_one_line()
    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        """Translate the options, and build vLLM's half for `role`.

        Raises:
            ConfigError: An option cannot be used.
        """
        is_scheduler = role is KVConnectorRole.SCHEDULER
        self._uses_ssd = _uses_ssd(self._engine, says_so=is_scheduler)
        config = translated(self._engine, uses_ssd=self._uses_ssd, says_so=is_scheduler)
        super().__init__(config, role, kv_cache_config)
        self._old_pages = OldPages()
        if is_scheduler:
            _say_what_to_expect(vllm_config, kv_cache_config)
            self._barrier = FaultBarrier()
            self._loadable: set[str] = set()
            """Requests that vLLM may look up, by its id."""

            self._follow_events()
            self._requests = Requests(self._engine, follow_adapters(vllm_config, self._barrier))
            forget_name(vllm_config.kv_transfer_config.engine_id)  # every worker has mapped it

    @override
    def shutdown(self) -> None:
        if self.connector_worker is not None:
            # The scheduler's side has unlinked the region: vLLM would log that it is not there.
            region = getattr(self.connector_worker.worker, "_mmap_region", None)
            if region is not None:
                region._creator = False  # noqa: SLF001 vLLM has no option for it
        super().shutdown()

    @override
    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        self._old_pages.follow(gpu_block_pool)

    @override
    def on_new_request(self, request: "Request") -> None:
        permit = self._barrier.run(partial(self._requests.begin, request), lambda: None)
        if permit is not None and self._uses_ssd:
            self._engine.requests[request.request_id] = permit.tier_request
        super().on_new_request(request)
        if permit is not None and permit.may_load:
            self._loadable.add(request.request_id)
        if permit is None or not permit.may_save:
            self._bar_saves(request.request_id)

    @override
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> "KVConnectorMetadata":
        self._bar_doubtful(self._statuses)
        self._drop_barred_tails(scheduler_output)
        return super().build_connector_meta(scheduler_output)

    @override
    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Ask vLLM's offloading, and again in a later step if it has begun to promote.

        To promote, it evicts from host memory: it may be what this very answer counts on.
        """
        self._bar_doubtful([request.request_id])
        if self._old_pages.may_be_hit and (num_computed_tokens or self._hits_within_pages):
            self._bar_saves(request.request_id)
        self._notice_reset()  # before what the request finds is announced
        self._engine.offered.clear()
        with _skipping(request, skips=request.request_id not in self._loadable):
            found: tuple[int | None, bool] = super().get_num_new_matched_tokens(
                request, num_computed_tokens
            )
        if not self._engine.offered:
            return found
        self._barrier.run(partial(self._announce_offered, request), nothing)
        return None, False

    @override
    def take_events(self) -> "Iterable[KVCacheEvent]":
        self._notice_reset()
        events: Iterable[KVCacheEvent] = super().take_events()
        return events

    @override
    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """MultiConnector asks so where another child knows of one cache group only."""
        return self.request_finished_all_groups(request, (block_ids,))

    @override
    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._barrier.run(partial(self._requests.end, request), lambda: None)
        self._loadable.discard(request.request_id)
        # The token sampled last was never fed back: it has no KV, which vLLM before 0.30 forgets.
        num_known = max(request.num_prompt_tokens, request.num_tokens - 1)
        self._limit_saves(request.request_id, num_known)
        finished: tuple[bool, dict[str, Any] | None] = super().request_finished_all_groups(
            request, block_ids
        )
        return finished

    @override
    def reset_cache(self) -> bool | None:
        """Empty the host tier, and begin a new generation below.

        Running requests have KV of before the reset, which vLLM would store once more from their
        first block on: they store nothing any more, and neither does who hits their pages.
        """
        is_reset: bool | None = super().reset_cache()
        self._old_pages.note_reset()
        for request_id in self._statuses:
            self._bar_saves(request_id)
        return is_reset

    @classmethod
    @override
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> "KVConnectorPromMetrics":
        """Define the metrics of the tier, in a process where no connector is ever made."""
        return super().build_prom_metrics(
            with_tier(vllm_config), metric_types, labelnames, per_engine_labelvalues
        )

    @classmethod
    def _why_not(cls, engine: OffloadingEngine, role: KVConnectorRole) -> str | None:
        """Name what keeps an engine from being served, if anything does.

        Raises:
            ConfigError: The options contradict the engine's.
        """
        config = engine.vllm_config
        engine_id = config.kv_transfer_config.engine_id
        moves_on_cpu = replaces_spec(config)
        if reason := why_not(config, engine.kv_cache_config, moves_on_cpu=moves_on_cpu):
            return reason
        if reason := why_no_room(engine_id, region_bytes(engine), row_bytes(engine)):
            return reason
        if role is KVConnectorRole.SCHEDULER and not is_there(engine_id):
            # Workers see each layer's cache and the room of an earlier moment: they were refused.
            return "its workers could not be served: see above"
        return None

    def _follow_events(self) -> None:
        """Have routers told of both tiers alike."""
        if self._engine.announcer is not None:
            assert self.connector_scheduler is not None
            self.connector_scheduler._events_tracker = EventsTracker.of(  # noqa: SLF001 vLLM has no option for it
                self._engine.announcer,
                self._engine.counters,
                self._barrier,
                self.connector_scheduler.manager,
            )

    def _notice_reset(self) -> None:
        """Announce all anew: the event of a reset of vLLM's clears all tiers of this engine."""
        if self._engine.announcer is not None and self._old_pages.saw_reset():
            self._engine.announcer.forget()

    def _announce_offered(self, request: "Request") -> None:
        """Tell routers of what an earlier process has left: now its tokens are known."""
        if self._engine.announcer is not None:
            announce_offered(self._engine, self._statuses[request.request_id])

    @property
    def _statuses(self) -> "dict[str, RequestOffloadState]":
        """What vLLM's offloading knows of each request."""
        assert self.connector_scheduler is not None
        statuses: dict[str, RequestOffloadState]
        statuses = self.connector_scheduler._req_status  # noqa: SLF001 vLLM has no hook
        return statuses

    def _bar_doubtful(self, names: Iterable[str]) -> None:
        """Neither load nor save for requests whose adapter may have changed under them."""
        for name in self._barrier.run(
            lambda: self._requests.find_doubtful(names), lambda: list(names)
        ):
            self._loadable.discard(name)
            self._bar_saves(name)
            self._engine.requests.pop(name, None)  # nor what is on its way to the tier

    def _drop_barred_tails(self, scheduler_output: "SchedulerOutput") -> None:
        """Take from vLLM what it would store of barred requests: their 0 is no limit there."""
        tails = tails_of(scheduler_output)
        for request_id in self._statuses.keys() & tails.keys():
            if self._statuses[request_id].max_offload_tokens == 0:
                del tails[request_id]

    def _bar_saves(self, request_id: str) -> None:
        self._limit_saves(request_id, 0)

    def _limit_saves(self, request_id: str, num_tokens: int) -> None:
        """Let vLLM store no more than the first tokens of a request."""
        if status := self._statuses.get(request_id):
            limit = status.max_offload_tokens
            status.max_offload_tokens = num_tokens if limit is None else min(limit, num_tokens)

    @property
    def _hits_within_pages(self) -> bool:
        """Whether vLLM's own hit may end within its first page: we are told of whole ones."""
        assert self.connector_scheduler is not None
        return bool(self.connector_scheduler.config.supports_partial_tail)


@contextmanager
def _skipping(request: "Request", *, skips: bool) -> Iterator[None]:
    """Have vLLM look nothing up for a request: before 0.31 it has no limit on what is loaded."""
    before = request.skip_reading_prefix_cache
    request.skip_reading_prefix_cache = before or skips
    try:
        yield
    finally:
        request.skip_reading_prefix_cache = before


def _say_what_to_expect(vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
    logger.info(
        "offload.on: vLLM's own code moves KV between its device and host memory, and FlexKV "
        "verifies what comes from below; we have not run this on a GPU yet"
    )
    if interval := interval_to_share(vllm_config, kv_cache_config):
        logger.warning(
            "offload.no_shared_prefixes: of this model's windows and states vLLM keeps only where "
            "a prompt ended, so a second prompt that begins alike finds nothing: set "
            "--prefix-cache-retention-interval %d",
            interval,
        )


def _uses_ssd(engine: OffloadingEngine, *, says_so: bool) -> bool:
    if engine.cache.ssd_cache_bytes is None:
        return False
    reason = why_no_ssd(engine.vllm_config, engine.cache)
    if reason is not None and says_so:
        logger.warning("tier.off tier=ssd: serving without it, because %s", reason)
    return reason is None


FlexKVOffloadingConnector.__name__ = "flexkv-offload"
"""As it is registered: MultiConnector looks a child's statistics up by the name of its class."""


class FlexKVOffloadedByDevice(FlexKVOffloadingConnector):
    """The same for who has named `flexkv` alone: only what was tried is served."""

    @classmethod
    @override
    def _why_not(cls, engine: OffloadingEngine, role: KVConnectorRole) -> str | None:
        return why_untried(engine.kv_cache_config) or super()._why_not(engine, role)


FlexKVOffloadedByDevice.__name__ = "flexkv"
