"""Brings reports to the scheduler half: TensorRT-LLM has messages to its workers, and none back.

A collective of the engine's own does it, which every rank has to call equally often. So whether to
call it is decided only by what all ranks have heard alike: orders, and earlier reports. Nothing is
called while nothing is in flight.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from flexkv_connectors.session.orders import RankReport, StepOrders
from flexkv_core.block.types import JobId

__all__ = ["Exchange", "ExchangeOrders", "StopReport"]


@dataclass(kw_only=True)
class ExchangeOrders(StepOrders):
    """Orders for one step, and whether ranks exchange reports after it even if idle."""

    wants_reports: bool = False
    """Whether the scheduler half waits for reports although no plan is in flight."""


class StopReport(RankReport):
    """The engine counts on pages that this rank will not fill: every rank stops with it."""


class Exchange:
    """One rank's side of the exchange. Thread: that of the engine's executor."""

    def __init__(
        self,
        num_ranks: int,
        owners: Collection[int],
        gather: Callable[[RankReport], list[RankReport]],
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

        self._wants_reports = False
        self._is_over = False

    def introduce(self, report: RankReport) -> list[RankReport]:
        """Return what every rank reports at the start: each calls this equally often."""
        return self._gather(report)

    def expect(self, orders: ExchangeOrders) -> None:
        """Note the plans that ranks will report on."""
        for load in orders.loads:
            if load.plan is not None:
                self._waiting[load.plan.job_id] = set(self._readers)
        for plan in (*orders.saves, *(orders.ssd.plans if orders.ssd else ())):
            self._waiting[plan.job_id] = set(self._owners)
        self._wants_reports = orders.wants_reports

    def all_reports(self, take_report: Callable[[], RankReport]) -> list[RankReport]:
        """Return what every rank reports, or nothing if no report is waited for.

        The first refusal ends the exchange on every rank.
        """
        if self._is_over or not (self._waiting or self._wants_reports):
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
