"""Brings reports to the scheduler half: TensorRT-LLM tells its workers things, and asks nothing.

A collective of the engine's own does it, which every rank has to call equally often. So whether to
call it is decided only by what all ranks have heard alike: orders, and earlier reports. Nothing is
called while nothing is under way.
"""

from collections.abc import Callable, Collection

from flexkv_connectors.tensorrt_llm.messages import StepOrders, StepReport
from flexkv_core.block.types import JobId

__all__ = ["Exchange"]


class Exchange:
    """One rank's side of the exchange. Thread: that of the engine's executor."""

    def __init__(
        self,
        num_ranks: int,
        owners: Collection[int],
        gather: Callable[[StepReport], list[StepReport]],
    ) -> None:
        """Exchange among `num_ranks` ranks.

        Args:
            num_ranks: All that share the scheduler half.
            owners: Those that report on what is written into our tiers.
            gather: Returns the reports of all ranks; a collective.
        """
        self._readers = range(num_ranks)
        self._owners = owners
        self._gather = gather
        self._waiting: dict[JobId, set[int]] = {}
        """Ranks that have not reported on a plan."""

        self._listens = False
        self._is_over = False

    def introduce(self, report: StepReport) -> list[StepReport]:
        """Return what every rank says at the beginning: each calls this equally often."""
        return self._gather(report)

    def expect(self, orders: StepOrders) -> None:
        """Note what ranks will report on."""
        for load in orders.loads:
            if load.plan is not None:
                self._waiting[load.plan.job_id] = set(self._readers)
        for plan in (*orders.saves, *(orders.ssd.plans if orders.ssd else ())):
            self._waiting[plan.job_id] = set(self._owners)
        self._listens = orders.listens

    def all_reports(self, take_report: Callable[[], StepReport]) -> list[StepReport]:
        """Return what every rank says, or nothing if none is waited for.

        The first refusal ends the exchange on every rank.
        """
        if self._is_over or not (self._waiting or self._listens):
            return []
        reports = self._gather(take_report())
        for report in reports:
            for result in report.results:
                self._strike(result.job_id, report.rank)
        self._is_over = any(report.refusal for report in reports)
        return reports

    def _strike(self, job_id: JobId, rank: int) -> None:
        ranks = self._waiting.get(job_id, set())
        ranks.discard(rank)
        if not ranks:
            self._waiting.pop(job_id, None)
