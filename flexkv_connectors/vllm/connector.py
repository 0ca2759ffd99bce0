"""The class that vLLM calls. It only delegates, each hook through the fault barrier."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import vllm
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from flexkv_connectors.fault_barrier import (
    FaultBarrier,
    nothing,
    refusals_in_one_line,
)
from flexkv_connectors.session.orders import Load, RankReport
from flexkv_connectors.session.promises import Promises
from flexkv_connectors.versions import require_supported
from flexkv_connectors.vllm import log_like_vllm
from flexkv_connectors.vllm.adapter_loads import follow_adapters
from flexkv_connectors.vllm.deployment import read_cache_config, translate, why_not
from flexkv_connectors.vllm.identity import origin_of, why_no_ssd
from flexkv_connectors.vllm.metadata import VllmOrders, VllmReports
from flexkv_connectors.vllm.old_pages import OldPages
from flexkv_connectors.vllm.scheduler import SchedulerHalf
from flexkv_connectors.vllm.stats import FlexKVPromMetrics, FlexKVStats
from flexkv_connectors.vllm.support import window_of
from flexkv_connectors.vllm.worker import WorkerHalf
from flexkv_core.metrics import Counters

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["FlexKVConnector"]

logger = logging.getLogger(__name__)


class FlexKVConnector(KVConnectorBase_V1, SupportsHMA):
    """FlexKV behind vLLM's KV connector interface, 0.28 to 0.33.

    vLLM makes one instance in the scheduler's process and one in each worker; only the half that
    belongs to the instance's role exists. Models that cannot be restored from blocks are served
    without caching.
    """

    @refusals_in_one_line()
    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        """Translate the configuration and build the half for `role`.

        Raises:
            ConfigError: An option cannot be used.
            UnsupportedEngineError: This vLLM has never been checked.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        log_like_vllm()
        require_supported("vllm", vllm.__version__)
        cache = read_cache_config(vllm_config)
        self._barrier = FaultBarrier()
        self._counters = Counters()
        self._promises = Promises()
        self._rank = vllm_config.parallel_config.rank
        self._load_async = cache.load_async
        self._accepted: list[Load] = []
        """Promised to vLLM and not in any orders yet; kept here, so that no failure loses them."""

        self._old_pages = OldPages()
        self._page_allocator: BlockPool | None = None
        if reason := why_not(vllm_config, kv_cache_config, cache):
            if role is KVConnectorRole.SCHEDULER:
                self._barrier.switch_off(reason)
            else:
                self._barrier.reason = reason  # the scheduler logs it for all ranks
            return
        deployment = translate(vllm_config, kv_cache_config, cache)
        uses_ssd = cache.ssd_cache_bytes is not None
        if uses_ssd and (reason := why_no_ssd(vllm_config, kv_cache_config, deployment)):
            uses_ssd = False
            logger.warning("tier.off tier=ssd: serving without it, because %s", reason)
        if role is KVConnectorRole.SCHEDULER:
            _say_what_windows_cost(kv_cache_config)
            adapters = follow_adapters(vllm_config, self._barrier)
            self._scheduler = SchedulerHalf(deployment, self._counters, adapters)
            return
        origin = origin_of(vllm_config, kv_cache_config, deployment) if uses_ssd else None
        self._worker = WorkerHalf(deployment, self._promises, origin)

    # Worker: what vLLM's model runner calls around one forward pass, in this order.

    @override
    @refusals_in_one_line()
    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:
        if not self._barrier.reason:
            self._worker.register(kv_caches)

    @override
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        orders = _orders(kv_connector_metadata)
        self._barrier.run(lambda: self._worker.begin_step(orders), nothing)

    @override
    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        for load in _orders(connector_metadata).loads:
            self._promises.make(load.request_id, load.page_ids)

    @override
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        orders = _orders(self._get_connector_metadata())
        if orders.loads:
            self._barrier.run(lambda: self._worker.load(orders), self._fail_loads)

    @override
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: loads of a synchronous step are complete before its forward pass."""

    @override
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: "torch.Tensor",
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Do nothing: blocks are saved for all layers at once, after the forward pass."""

    @override
    def wait_for_save(self) -> None:
        self._barrier.run(lambda: self._worker.save(), nothing)

    @override
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        self._barrier.run(lambda: self._worker.collect(), self._fail_loads)
        finished: set[str] = {*self._promises.take_finished()}
        # vLLM waits for no load of a synchronous step, and must not hear of one.
        return None, (finished or None) if self._load_async else None

    @override
    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._promises.take_failed_pages()

    @override
    def build_connector_worker_meta(self) -> VllmReports | None:
        return self._barrier.run(lambda: self._worker.take_reports(), self._refuse)

    @override
    def shutdown(self) -> None:
        # Not after a failure: copies may be in flight then, and the process ends anyway.
        if self._role is KVConnectorRole.WORKER:
            self._barrier.run(lambda: self._worker.session.shutdown(), nothing)

    def _fail_loads(self) -> None:
        """End open loads as failed, unless a copy may still write: then in a later step."""
        if self._promises.open and self._worker.session.is_idle:
            self._promises.settle_all_as_failed()

    def _refuse(self) -> VllmReports:
        return VllmReports([RankReport(rank=self._rank, refusal=self._barrier.reason)])

    # Scheduler, in the order of one step.

    @override
    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        no_tokens: int | None = 0
        num_tokens = self._barrier.run(
            lambda: self._match(request, num_computed_tokens), lambda: no_tokens
        )
        return num_tokens, self._load_async and bool(num_tokens)

    def _match(self, request: "Request", num_local_tokens: int) -> int | None:
        self._notice_reset()  # before what the request finds is announced
        if num_local_tokens and self._old_pages.may_be_hit:
            self._scheduler.bar_saves(request)
        return self._scheduler.match(request, num_local_tokens)

    @override
    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        page_ids = blocks.get_block_ids()[0]
        load = self._barrier.run(
            lambda: self._scheduler.accept(request, page_ids, num_external_tokens),
            lambda: (
                self._scheduler.decline(request, page_ids, num_external_tokens)
                if num_external_tokens
                else None
            ),
        )
        if load is not None:
            self._accepted.append(load)

    @override
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> VllmOrders:
        orders = self._barrier.run(
            lambda: self._scheduler.build_orders(scheduler_output), VllmOrders
        )
        orders.loads, self._accepted = self._accepted, []
        return orders

    @override
    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        # First: the reports below may publish blocks that were computed from these pages.
        if failed_pages := connector_output.invalid_block_ids:
            self._barrier.run(lambda: self._drop_failed_pages(failed_pages), nothing)
        self._barrier.run(lambda: self._scheduler.end_step(), nothing)
        reports = connector_output.kv_connector_worker_meta
        if isinstance(reports, VllmReports):
            self._barrier.run(lambda: self._scheduler.handle_reports(reports), nothing)
            if reports.refusal:
                self._barrier.switch_off(reports.refusal)

    def _drop_failed_pages(self, failed_pages: set[int]) -> None:
        """Keep what was computed from `failed_pages` from being reused, by us and by vLLM itself.

        vLLM relies on the request to compute them again, but it may be aborted before.
        """
        wrong_pages = self._scheduler.session.drop_failed_pages(failed_pages)
        if self._page_allocator is not None:
            self._page_allocator.evict_blocks(wrong_pages)

    @override
    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        self._page_allocator = gpu_block_pool
        self._old_pages.follow(gpu_block_pool)

    @override
    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Never delay the release of pages: the next step saves them before it reuses them."""
        self._barrier.run(lambda: self._scheduler.finish(request), nothing)
        return False, None

    @override
    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    @override
    def has_pending_push_work(self) -> bool:
        return self._barrier.run(lambda: self._scheduler.has_pending_work, lambda: False)

    @override
    def reset_cache(self) -> bool:
        """Forget everything, because the weights may have changed."""
        self._old_pages.note_reset()
        self._barrier.run(lambda: self._scheduler.session.reset(), nothing)
        return True

    @override
    def take_events(self) -> "Iterable[KVCacheEvent]":
        return self._barrier.run(self._take_events, self._take_back_events)

    def _take_events(self) -> "list[KVCacheEvent]":
        self._notice_reset()
        return [*self._scheduler.take_events()]

    def _take_back_events(self) -> "list[KVCacheEvent]":
        """Let no router send requests to a cache that is off."""
        no_events: list[KVCacheEvent] = []
        half: SchedulerHalf | None = getattr(self, "_scheduler", None)
        if half is None:
            return no_events
        return FaultBarrier("events").run(lambda: [*half.take_back_events()], lambda: no_events)

    def _notice_reset(self) -> None:
        """Announce all anew: the event of a reset of vLLM's clears all tiers of this engine."""
        if self._old_pages.saw_reset():
            self._scheduler.forget_events()

    @override
    def get_external_cache_hit_sources(
        self, request: "Request", num_external_tokens: int
    ) -> "dict[CacheHitSource, int]":
        """Return how many tokens came from which tier. vLLM calls this from 0.32 on."""
        from vllm.v1.metrics.cache_hit_source import (  # noqa: PLC0415 not in older versions
            CacheHitSource,
        )

        num_ssd_tokens = self._barrier.run(
            lambda: self._scheduler.num_ssd_tokens(request, num_external_tokens), lambda: 0
        )
        sources = {
            CacheHitSource.HOST: num_external_tokens - num_ssd_tokens,
            CacheHitSource.DISK: num_ssd_tokens,
        }
        return {source: num_tokens for source, num_tokens in sources.items() if num_tokens}

    # Both roles, and the class methods.

    @override
    def get_kv_connector_stats(self) -> "KVConnectorStats | None":
        if self._role is KVConnectorRole.WORKER:
            return None
        counts = self._barrier.run(
            lambda: self._scheduler.session.take_counts(), lambda: {"switched_off": 1.0}
        )
        return FlexKVStats(data=counts) if counts else None

    @property
    @override
    def requires_kv_delivery(self) -> bool:
        """Preemption need not wait for saves: one that is dropped is only a later miss."""
        return False

    @classmethod
    @override
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> "KVConnectorStats | None":
        return FlexKVStats(data=data or {})

    @classmethod
    @override
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> "KVConnectorPromMetrics":
        return FlexKVPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _say_what_windows_cost(kv_cache_config: "KVCacheConfig") -> None:
    if window := window_of(kv_cache_config):
        logger.info(
            "windows.kept_whole: layers that see %d tokens keep KV of all while vLLM's hybrid "
            "manager is off: in each tier they take as much room as layers of full attention",
            window,
        )


def _orders(metadata: KVConnectorMetadata) -> VllmOrders:
    assert isinstance(metadata, VllmOrders)
    return metadata


# MultiConnector files a child's statistics under its class's name and looks them up under its
# registered name (vllm-project/vllm#57683): the two must be one.
FlexKVConnector.__name__ = "flexkv"
