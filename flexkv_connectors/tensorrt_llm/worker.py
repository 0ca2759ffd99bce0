"""The worker half: turns a step's orders into verbs of `CacheWorker`, and results into a report."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.common.deployment import Deployment
from flexkv_connectors.common.host_pool import host_budget_bytes, open_host_pool
from flexkv_connectors.common.ssd_share import SsdShare
from flexkv_connectors.tensorrt_llm.messages import StepOrders, StepReport
from flexkv_core.errors import BrokenPromiseError
from flexkv_core.namespace import Namespace
from flexkv_core.plan import Status, TransferPlan, TransferResult
from flexkv_core.tiers.host import HostPool
from flexkv_core.transfer.cpu_lane import CpuLane
from flexkv_core.transfer.results import refused
from flexkv_core.types import JobId
from flexkv_core.worker import HOST, PAGES, CacheWorker, Route

if TYPE_CHECKING:
    import torch

    from flexkv_connectors.common.gpu_share import GpuShare
    from flexkv_core.layout import PagePool
    from flexkv_core.transfer.lane import Lane

__all__ = ["WorkerHalf", "are_on_gpu"]


def are_on_gpu(slabs: "Sequence[torch.Tensor]") -> bool:
    """Tell whether the engine's KV is in device memory; the first tensor speaks for all."""
    return bool(slabs[0].is_cuda)


class WorkerHalf:
    """Moves one rank's bytes for the engine.

    Thread: that of the engine's executor.
    """

    def __init__(self, deployment: Deployment, namespace: Namespace | None) -> None:
        """Serve this rank.

        Args:
            deployment: The engine's shape.
            namespace: What the blocks on SSD are blocks of; None where there is no SSD tier.

        Raises:
            ConfigError: The machine does not have the memory that was asked for.
        """
        self._deployment = deployment
        self._namespace = namespace
        # Asked here, before any rank has taken its part: later the others' would count as used.
        self._budget_bytes = host_budget_bytes(deployment) if deployment.is_owner else 0
        self._slabs: Sequence[torch.Tensor] = ()
        self._pages: PagePool | None = None
        self._pool: HostPool | None = None
        self._gpu: GpuShare | None = None
        self._worker: CacheWorker | None = None
        self._ssd: SsdShare | None = None
        self._results: list[TransferResult] = []
        self._loading: dict[JobId, int] = {}

    def open(self, slabs: "Sequence[torch.Tensor]", pages: "PagePool") -> StepReport:
        """Open this rank's share of the tiers, if it owns one, and say what there is.

        Args:
            slabs: The engine's KV, `[blocks, heads, tokens, content]` for each layer and plane.
            pages: The same, described.

        Raises:
            ConfigError: The host tier does not fit into this machine, or the SSD tier has no
                directory, or the GPU is full.
            TierError: Host memory cannot be had, or not be pinned.
        """
        deployment = self._deployment
        self._slabs, self._pages = slabs, pages
        if not deployment.is_owner:
            return StepReport(rank=deployment.rank)
        pool = open_host_pool(deployment, self._budget_bytes)
        quota_bytes = deployment.ssd_quota_bytes
        if self._namespace is not None and quota_bytes is not None:
            self._ssd = SsdShare(deployment, self._namespace, pool, quota_bytes)
        self._start(pool)
        report = self.take_report()
        report.pool = pool.address
        report.staging = self._gpu.lane.save_places if self._gpu is not None else None
        return report

    def attach(self, reports: Iterable[StepReport]) -> StepReport:
        """Read the pool of this rank's owner, who reports it, if this rank has none of its own.

        Raises:
            ConfigError: The GPU is full.
            TierError: The owner is on another node, or the pool cannot be pinned.
        """
        if self._worker is None:
            owner = next(told for told in reports if told.rank == self._deployment.owner)
            assert owner.pool is not None, "owners report their pools"
            self._start(HostPool.attach(owner.pool))
        return StepReport(rank=self._deployment.rank)

    def load(self, orders: StepOrders) -> list[int]:
        """Begin this step's loads, and its copies between host memory and SSD.

        Returns:
            The requests that have nothing to load after all.
        """
        plans = {load.request_id: load.plan for load in orders.loads if load.plan is not None}
        self._loading |= {plan.job_id: request for request, plan in plans.items()}
        self._submit(plans.values())
        if self._ssd is not None and orders.ssd is not None:
            self._ssd.prepare(orders.ssd)
            self._submit(orders.ssd.plans)
        return [load.request_id for load in orders.loads if load.plan is None]

    def save(self, orders: StepOrders) -> None:
        """Copy finished blocks out, after the forward pass that computes them."""
        self._submit(orders.saves)

    def skip(self, plans: Iterable[TransferPlan]) -> None:
        """Report saves as failed whose forward pass did not take place: nothing was computed."""
        if self._deployment.is_owner:
            rank = self._deployment.rank
            self._results += (refused(plan, rank, Status.TIMEOUT, "") for plan in plans)

    def take_loaded(self) -> list[int]:
        """Take in what has ended; return the requests whose pages are filled since the last call.

        Raises:
            BrokenPromiseError: A load has failed.
        """
        assert self._worker is not None
        results = self._worker.poll()
        self._results += results
        loads = [result for result in results if result.job_id in self._loading]
        for result in loads:
            if result.status is not Status.OK:
                reason = result.error or result.status.name
                msg = f"a load that the engine waits for has failed: {reason}"
                raise BrokenPromiseError(msg)
        return [self._loading.pop(result.job_id) for result in loads]

    def take_report(self) -> StepReport:
        """Return what the scheduler half has not heard yet."""
        results, self._results = self._results, []
        told = self._ssd.take_report() if self._ssd is not None else None
        return StepReport(
            rank=self._deployment.rank, results=results, tiers=[] if told is None else [told]
        )

    def shutdown(self) -> None:
        """Stop copying and give the host memory back."""
        drained = self._worker is None or self._worker.shutdown(timeout_s=2.0)
        if self._gpu is not None and drained:
            self._gpu.close()
        if self._ssd is not None and drained:
            self._ssd.close()
        if self._pool is not None:
            self._pool.close()

    def _start(self, pool: HostPool) -> None:
        """Begin to copy between the engine's pages and `pool`."""
        deployment, lane = self._deployment, self._open_lane(pool)
        lanes: Mapping[Route, Lane] = {Route(PAGES, HOST): lane, Route(HOST, PAGES): lane}
        if self._ssd is not None:
            lanes = {**lanes, **self._ssd.lanes}
        self._pool = pool
        self._worker = CacheWorker(deployment.rank, lanes, is_owner=deployment.is_owner)

    def _open_lane(self, pool: HostPool) -> "Lane":
        """Open the lane to where the engine's pages lie."""
        deployment, pages = self._deployment, self._pages
        assert pages is not None
        if are_on_gpu(self._slabs):
            from flexkv_connectors.common.gpu_share import (  # noqa: PLC0415 it imports Triton
                GpuShare,
            )

            self._gpu = GpuShare(deployment, self._slabs, pages, pool)
            return self._gpu.lane
        threads = deployment.cache.copy_threads or min(2, len(os.sched_getaffinity(0)))
        return CpuLane(deployment.rank, pages, deployment.block_format, pool, num_threads=threads)

    def _submit(self, plans: Iterable[TransferPlan]) -> None:
        assert self._worker is not None
        for plan in plans:
            self._worker.submit(plan)
