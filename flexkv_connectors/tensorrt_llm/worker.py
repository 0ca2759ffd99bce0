"""The worker half: orders copies around TensorRT-LLM's forward pass, and reports."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.orders import RankReport, StepOrders
from flexkv_connectors.session.promises import Promises
from flexkv_connectors.session.worker import WorkerSession
from flexkv_core.data.transfer.results import refused
from flexkv_core.errors import BrokenPromiseError
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import Status, TransferPlan, TransferResult

if TYPE_CHECKING:
    import torch

    from flexkv_core.block.layout import PagePool

__all__ = ["WorkerHalf"]


class WorkerHalf:
    """Moves one rank's bytes for the engine. Thread: that of the engine's executor."""

    def __init__(self, deployment: Deployment, promises: Promises, origin: Origin | None) -> None:
        """Serve this rank, as `WorkerSession` does; `promises` are settled when loads end."""
        self.session = WorkerSession(deployment, origin)
        self._deployment = deployment
        self._promises = promises
        self._skipped: list[TransferResult] = []

    def open(self, slabs: "Sequence[torch.Tensor]", pages: "PagePool") -> RankReport:
        """Open this rank's share of the tiers, as `WorkerSession.open` does, and report it."""
        self.session.open(slabs, pages)
        return self.session.take_report()

    def attach(self, reports: Iterable[RankReport]) -> RankReport:
        """Map the pool of this rank's owner, as `WorkerSession.attach` does, and report it."""
        owner = next(report for report in reports if report.rank == self._deployment.owner)
        assert owner.pool is not None, "owners report their pools"
        self.session.attach(owner.pool)
        return self.session.take_report()

    def load(self, orders: StepOrders) -> None:
        """Start this step's loads, and its copies between host memory and SSD."""
        self.session.load(orders.loads)
        if any(load.plan for load in orders.loads):
            # Some versions give the pages of a cancelled request away while they are loaded.
            self.session.hold_compute()
        self.session.move(orders.ssd)

    def save(self, orders: StepOrders) -> None:
        """Copy finished blocks out, after the forward pass that computes them."""
        self.session.submit(orders.saves)

    def skip(self, plans: Iterable[TransferPlan]) -> None:
        """Report saves as failed whose forward pass did not take place: nothing was computed."""
        if self._deployment.is_owner:
            rank = self._deployment.rank
            self._skipped += (refused(plan, rank, Status.TIMEOUT) for plan in plans)

    def collect(self) -> None:
        """Settle the promises of loads that have ended.

        Raises:
            BrokenPromiseError: A load has failed.
        """
        loads = self.session.collect()
        if failure := next((ended.failure for ended in loads if ended.failure), ""):
            msg = f"a load that the engine waits for has failed: {failure}"
            raise BrokenPromiseError(msg)
        for ended in loads:
            self._promises.settle(ended.load.request_id, ended.num_good_pages)

    def take_report(self) -> RankReport:
        """Return what has happened since the last report."""
        report = self.session.take_report()
        report.results += self._skipped
        self._skipped = []
        return report
