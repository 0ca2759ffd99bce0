"""The worker half: turns a step's orders into verbs of `CacheWorker`, and results into a report."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.host_pool import host_budget_bytes, open_host_pool
from flexkv_connectors.session.rank_share import RankShare
from flexkv_connectors.session.ssd_share import SsdShare
from flexkv_connectors.tensorrt_llm.messages import StepOrders, StepReport
from flexkv_core.block.types import JobId
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.results import refused
from flexkv_core.errors import BrokenPromiseError
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import Status, TransferPlan, TransferResult

if TYPE_CHECKING:
    import torch

    from flexkv_core.block.layout import PagePool

__all__ = ["WorkerHalf"]


class WorkerHalf:
    """Moves one rank's bytes for the engine.

    Thread: that of the engine's executor.
    """

    def __init__(self, deployment: Deployment, origin: Origin | None) -> None:
        """Serve this rank.

        Args:
            deployment: The engine's shape.
            origin: What the blocks on SSD are blocks of; None where there is no SSD tier.

        Raises:
            ConfigError: The machine does not have the memory that was asked for.
        """
        self._deployment = deployment
        self._origin = origin
        # Asked here, before any rank has taken its part: later the others' would count as used.
        self._budget_bytes = host_budget_bytes(deployment) if deployment.is_owner else 0
        self._slabs: Sequence[torch.Tensor] = ()
        self._pages: PagePool | None = None
        self._share: RankShare | None = None
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
        share = self._open(pool)
        report = self.take_report()
        report.pool = pool.address
        report.staging = share.save_places
        return report

    def attach(self, reports: Iterable[StepReport]) -> StepReport:
        """Read the pool of this rank's owner, who reports it, if this rank has none of its own.

        Raises:
            ConfigError: The GPU is full.
            TierError: The owner is on another node, or the pool cannot be pinned.
        """
        if self._share is None:
            owner = next(told for told in reports if told.rank == self._deployment.owner)
            assert owner.pool is not None, "owners report their pools"
            self._open(HostPool.attach(owner.pool))
        return StepReport(rank=self._deployment.rank)

    def load(self, orders: StepOrders) -> list[int]:
        """Begin this step's loads, and its copies between host memory and SSD.

        Returns:
            The requests that have nothing to load after all.
        """
        plans = {load.request_id: load.plan for load in orders.loads if load.plan is not None}
        self._loading |= {plan.job_id: request for request, plan in plans.items()}
        self._submit(plans.values())
        if plans and self._share is not None:
            # Some versions give the pages of a cancelled request away while they are loaded.
            self._share.hold_compute()
        if self._share is not None and orders.ssd is not None:
            self._share.move(orders.ssd)
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
        assert self._share is not None
        results = self._share.worker.poll()
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
        told = None if self._ssd is None else self._ssd.take_report()
        return StepReport(
            rank=self._deployment.rank, results=results, tiers=[] if told is None else [told]
        )

    def shutdown(self) -> None:
        """Stop copying and give the host memory back."""
        if self._share is not None:
            self._share.close()

    @property
    def _ssd(self) -> SsdShare | None:
        return None if self._share is None else self._share.ssd

    def _open(self, pool: HostPool) -> RankShare:
        """Begin to copy between the engine's pages and `pool`."""
        assert self._pages is not None
        self._share = RankShare(self._deployment, self._slabs, self._pages, pool, self._origin)
        return self._share

    def _submit(self, plans: Iterable[TransferPlan]) -> None:
        assert self._share is not None
        for plan in plans:
            self._share.worker.submit(plan)
