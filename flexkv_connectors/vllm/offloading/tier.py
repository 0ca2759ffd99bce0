"""The tier that vLLM's tiering manager calls; each call goes through the fault barrier."""

import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from flexkv_connectors.below_host.deferred_stores import DeferredStores
from flexkv_connectors.below_host.rank import StorageRank
from flexkv_connectors.fault_barrier import FaultBarrier, nothing, refusals_in_one_line
from flexkv_connectors.vllm.offloading.rows import (
    EngineSettings,
    Rows,
    describe_rows,
    origin_of_rows,
)
from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.block_store import BlockStore
from flexkv_core.block_store.blocks import Blocks
from flexkv_core.plan import Status

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec, OffloadKey, ReqContext

__all__ = ["FlexKVTier"]

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    """One of vLLM's jobs under way."""

    job: TransferJob
    keys: list[BlockKey]


class FlexKVTier(SecondaryTierManager):
    """Keeps rows of vLLM's host region on SSD, verified, bounded and for later processes.

    vLLM waits for a job for as long as it takes, and asks again for what has failed. So every load
    has a deadline, and a key that has failed a request is a miss for it from then on. Rows are
    copied within these calls alone, never by a thread of ours: what a disk returns too late stays
    in our staging memory.

    Thread: the scheduler's.
    """

    medium = Medium.STORAGE

    @refusals_in_one_line()
    def __init__(
        self,
        offloading_spec: "OffloadingSpec",
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        engine: EngineSettings,
    ) -> None:
        """Begin to identify the model; rows are stored once it is known.

        Raises:
            ConfigError: An option cannot be used.
        """
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self._barrier = FaultBarrier(without="the SSD tier")
        self._keeps_name = bool(engine.cache.weight_version)
        self._jobs: dict[JobId, _Job] = {}
        """Under way, by the store's id."""

        self._ended: list[JobResult] = []
        self._refused: dict[str, set[BlockKey]] = {}
        """Keys that have failed a request, which must not be offered to it again."""

        rows = Rows.of(primary_kv_view)
        config = offloading_spec.config
        self._stores = DeferredStores(
            _rank_of(engine, config.engine_id),
            origin_of_rows(engine, config, rows),
            partial(describe_rows, rows),
        )

    @override
    def lookup(self, key: "OffloadKey", req_context: "ReqContext") -> LookupResult:
        return self._barrier.run(lambda: self._lookup(key, req_context), lambda: LookupResult.MISS)

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
        self._refused.pop(req_context.req_id, None)

    @override
    def drain_jobs(self) -> None:
        """Report every job, and forget all blocks: vLLM calls this when weights may have changed."""
        self._barrier.run(self._cancel, nothing)
        self._abandon()
        self._barrier.run(lambda: self._stores.reset(keeps_name=self._keeps_name), nothing)

    @override
    def shutdown(self) -> None:
        self._barrier.run(self._cancel, nothing)
        FaultBarrier().run(self._stores.close, nothing)

    @property
    def _store(self) -> BlockStore | None:
        """The store; None until the model is known."""
        stores = self._stores.opened
        return None if stores is None else stores.get("offload")

    def _lookup(self, key: "OffloadKey", req_context: "ReqContext") -> LookupResult:
        store, block_key = self._store, _block_key(key)
        if store is None or block_key in self._refused.get(req_context.req_id, ()):
            return LookupResult.MISS
        (is_there,) = store.lookup([block_key])
        return LookupResult.HIT if is_there else LookupResult.MISS

    def _submit(self, submit: Callable[[BlockStore, Blocks], JobId], job: TransferJob) -> None:
        if not self._barrier.run(lambda: self._begin(submit, job), lambda: False):
            self._end(job, [])

    def _begin(self, submit: Callable[[BlockStore, Blocks], JobId], job: TransferJob) -> bool:
        store = self._store
        if store is None:
            return False
        keys = list(map(_block_key, job.keys))
        job_id = submit(store, Blocks(keys, list(map(int, job.chunk_ids))))
        self._jobs[job_id] = _Job(job, keys)
        return True

    def _poll(self) -> None:
        store = self._store
        for result in () if store is None else store.poll():
            under_way = self._jobs.pop(result.job_id, None)
            if under_way is not None:  # else it was abandoned
                self._take_in(under_way, result.statuses)

    def _take_in(self, under_way: _Job, statuses: Collection[Status]) -> None:
        job, keys = under_way
        is_good = [status is Status.OK for status in statuses]
        if job.is_promotion and not all(is_good):
            bad = {key for key, good in zip(keys, is_good, strict=True) if not good}
            self._refused.setdefault(job.req_context.req_id, set()).update(bad)
        self._end(job, [key for key, good in zip(job.keys, is_good, strict=True) if good])

    def _end(self, job: TransferJob, good_keys: "list[OffloadKey]") -> None:
        self._ended.append(
            JobResult(
                job_id=job.job_id,
                success=len(good_keys) == len(job.keys),
                successful_keys=good_keys,
                transfer_bytes=len(good_keys) * self.block_size_bytes,
            )
        )

    def _cancel(self) -> None:
        """Have nothing more done for any job: no row is read or written from here on."""
        store = self._store
        for job_id in self._jobs if store is not None else ():
            store.cancel(job_id)

    def _abandon(self) -> None:
        """Report every job under way as failed."""
        jobs, self._jobs = self._jobs, {}
        for under_way in jobs.values():
            self._end(under_way.job, [])


def _rank_of(engine: EngineSettings, engine_id: str) -> StorageRank:
    assert engine.cache.ssd_cache_bytes is not None
    return StorageRank(
        cache=engine.cache,
        quota_bytes=engine.cache.ssd_cache_bytes,
        num_replicas=1,
        is_follower=False,
        engine_id=engine_id,
    )


def _block_key(key: "OffloadKey") -> BlockKey:
    """Return a key of the length that ours have; vLLM's hash of the prefix, and the group's number."""
    return BlockKey(sha256(key).digest())
