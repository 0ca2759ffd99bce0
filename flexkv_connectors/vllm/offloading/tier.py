"""The tier that vLLM's tiering manager calls; each call goes through the fault barrier."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from flexkv_connectors.below_host.deferred_stores import DeferredStores
from flexkv_connectors.below_host.rank import StorageRank
from flexkv_connectors.fault_barrier import FaultBarrier, nothing, refusals_in_one_line
from flexkv_connectors.vllm.deployment import num_engines_on_node
from flexkv_connectors.vllm.offloading.drift import end_of, make_result, rows_of
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine, TierRequest
from flexkv_connectors.vllm.offloading.rows import ROWS, Rows, describe_rows, origin_of_rows
from flexkv_connectors.vllm.offloading.stats import metric_definitions, stats_of
from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.block_store.blocks import Blocks
from flexkv_core.errors import ConfigError
from flexkv_core.plan import Status

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats,
    )
    from vllm.v1.kv_offload.base import (
        OffloadingMetricMetadata,
        OffloadingSpec,
        OffloadKey,
        ReqContext,
    )
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

__all__ = ["FlexKVTier"]


_WITHOUT = "the SSD tier"
_NEEDS_OURS = (
    "below vLLM's OffloadingConnector FlexKV would not hear of which model, adapters and media KV "
    'is, nor which of it is older than the weights: set "kv_connector": "flexkv-offload", which is '
    "that connector with FlexKV's options"
)


class _Job(NamedTuple):
    """One of vLLM's jobs under way."""

    job: TransferJob
    keys: "Sequence[OffloadKey]"
    """Those of its keys that the store was asked for."""


class FlexKVTier(SecondaryTierManager):
    """Keeps rows of vLLM's host region on SSD: verified, bounded, and for later processes.

    vLLM waits for a job for as long as it takes, and asks again for what has failed. So every load
    has a deadline, and a key that was read for a request is a miss for it from then on. Rows are
    read and written within these calls alone, never by a thread of ours: what a disk returns too
    late stays in our staging memory.

    Thread: the scheduler's.
    """

    medium = Medium.STORAGE

    @refusals_in_one_line()
    def __init__(
        self,
        offloading_spec: "OffloadingSpec",
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: "BackpressureDetector | None" = None,
        *,
        engine: OffloadingEngine | None = None,
        **_options: object,
    ) -> None:
        """Begin to identify the model; rows are stored once it is known.

        Args:
            offloading_spec: vLLM's.
            primary_kv_view: vLLM's host region, `[num_rows, row_bytes]`.
            tier_type: vLLM's name of this tier.
            backpressure_detector: vLLM's, where it is told to use one.
            engine: What vLLM does not hand to a tier; its own connector has none.
            _options: Of a tier below vLLM's own connector, where there is none.

        Raises:
            ConfigError: An option cannot be used, or the connector is not ours.
        """
        if engine is None:
            raise ConfigError(_NEEDS_OURS)
        # Before 0.31 there is no such argument, so it is passed only where vLLM has one.
        detector = {"backpressure_detector": backpressure_detector} if backpressure_detector else {}
        super().__init__(offloading_spec, primary_kv_view, tier_type, **detector)
        self._barrier = FaultBarrier(_WITHOUT)
        self._keeps_name = bool(engine.cache.weight_version)
        self._engine = engine
        self._requests = engine.requests
        self._jobs: dict[JobId, _Job] = {}
        """Under way, by the store's id."""

        self._ended: list[JobResult] = []
        rows, config = Rows.of(primary_kv_view), offloading_spec.config
        self._row_bytes = rows.row_bytes
        self._stores = DeferredStores(
            _rank_of(engine, config.engine_id),
            origin_of_rows(engine, config, rows),
            partial(describe_rows, rows),
        )

    @override
    def lookup(self, key: "OffloadKey", req_context: "ReqContext") -> LookupResult:
        return self._barrier.run(lambda: self._lookup(key, req_context), _miss)

    @override
    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(BlockStore.submit_load, job_metadata)

    @override
    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(BlockStore.submit_save, job_metadata)

    @override
    def get_finished_jobs(self) -> Iterable[JobResult]:
        self._barrier.run(self._poll, self._abandon)
        ended, self._ended = self._ended, []
        return ended

    @override
    def on_new_request(self, req_context: "ReqContext") -> RequestOffloadingContext:
        return RequestOffloadingContext()

    @override
    def on_request_finished(self, req_context: "ReqContext") -> None:
        self._requests.pop(req_context.req_id, None)

    @override
    def drain_jobs(self) -> None:
        """End every job, and forget all blocks: vLLM calls this when weights may have changed."""
        self._barrier.run(self._cancel, nothing)
        self._abandon()
        # Whatever has failed before: what is on disk must not be found under these weights.
        barrier = FaultBarrier(_WITHOUT)
        barrier.run(lambda: self._stores.reset(keeps_name=self._keeps_name), self._give_up)

    @override
    def shutdown(self) -> None:
        self._barrier.run(self._cancel, nothing)
        FaultBarrier(_WITHOUT).run(self._stores.close, nothing)

    @override
    def get_stats(self) -> "OffloadingConnectorStats | None":
        stores = self._stores.opened
        changes = self._engine.counters.drain()
        changes["switched_off"] = float(bool(self._barrier.reason))
        for _, store in stores or ():
            changes |= self._barrier.run(store.take_counts, dict)
        return stats_of(changes)

    @classmethod
    @override
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> "dict[str, OffloadingMetricMetadata]":
        return metric_definitions()

    @property
    def _store(self) -> BlockStore | None:
        """The store; None until the model is known."""
        stores = self._stores.opened
        return None if stores is None else stores.get(ROWS)

    def _lookup(self, key: "OffloadKey", req_context: "ReqContext") -> LookupResult:
        store, request = self._store, self._requests.get(req_context.req_id)
        if store is None or request is None or not _is_durable(key, request, req_context):
            return LookupResult.MISS
        block_key = self._engine.block_key(key, req_context.req_id)
        if key in request.asked or not all(store.lookup([block_key])):
            return LookupResult.MISS
        self._engine.offered.append(key)
        return LookupResult.HIT

    def _submit(self, submit: Callable[[BlockStore, Blocks], JobId], job: TransferJob) -> None:
        if not self._barrier.run(lambda: self._begin(submit, job), lambda: False):
            self._end(job, [])

    def _begin(self, submit: Callable[[BlockStore, Blocks], JobId], job: TransferJob) -> bool:
        """Begin a job; return False if there is nothing to do for it."""
        store, request = self._store, self._requests.get(job.req_context.req_id)
        if store is None or request is None:
            return False
        rows = {
            key: row
            for key, row in zip(job.keys, rows_of(job), strict=True)
            if _is_durable(key, request, job.req_context)
        }
        if not rows:
            return False
        block_keys = [self._engine.block_key(key, job.req_context.req_id) for key in rows]
        self._expect(rows, block_keys)
        job_id = submit(store, Blocks(block_keys, [*rows.values()]))
        self._jobs[job_id] = _Job(job, [*rows])
        return True

    def _expect(self, keys: "Iterable[OffloadKey]", block_keys: Iterable[BlockKey]) -> None:
        """Note that what is stored is called as it is in host memory."""
        if (announcer := self._engine.announcer) is None:
            return
        for key, block_key in zip(keys, block_keys, strict=True):
            if pages := announcer.pages_of(key):
                announcer.expect([block_key], [pages])

    def _poll(self) -> None:
        store = self._store
        for result in () if store is None else store.poll():
            under_way = self._jobs.pop(result.job_id, None)
            if under_way is not None:  # else it was abandoned
                self._take_in(under_way, result.statuses)

    def _take_in(self, under_way: _Job, statuses: Sequence[Status]) -> None:
        job, keys = under_way
        is_good = [status is Status.OK for status in statuses]
        request = self._requests.get(job.req_context.req_id)
        if job.is_promotion and request is not None:
            request.asked.update(keys)
        self._end(job, [key for key, good in zip(keys, is_good, strict=True) if good])

    def _end(self, job: TransferJob, good_keys: "list[OffloadKey]") -> None:
        self._ended.append(make_result(job, good_keys, self._row_bytes))

    def _cancel(self) -> None:
        """Have nothing more done for any job: no row is read or written from here on."""
        store = self._store
        if store is not None:
            for job_id in self._jobs:
                store.cancel(job_id)

    def _give_up(self) -> None:
        self._barrier.switch_off("a reset could not be done")

    def _abandon(self) -> None:
        """Report every job under way as failed."""
        jobs, self._jobs = self._jobs, {}
        for under_way in jobs.values():
            self._end(under_way.job, [])


def _rank_of(engine: OffloadingEngine, engine_id: str) -> StorageRank:
    """Return the one process that stores what all ranks have: its scheduler."""
    assert engine.cache.ssd_cache_bytes is not None
    return StorageRank(
        cache=engine.cache,
        quota_bytes=engine.cache.ssd_cache_bytes // num_engines_on_node(engine.vllm_config),
        num_replicas=1,
        is_follower=False,
        engine_id=engine_id,
        events=None if engine.announcer is None else engine.announcer.log,
    )


def _is_durable(key: "OffloadKey", request: TierRequest, req_context: "ReqContext") -> bool:
    """Return whether a block may outlive the process."""
    if request.num_durable_tokens is None:
        return True
    end = end_of(key, req_context)
    return end is not None and end <= request.num_durable_tokens


def _miss() -> LookupResult:
    return LookupResult.MISS
