"""What vLLM's own messages carry between its scheduler and its workers, in each direction.

vLLM pickles them, so these are plain classes at module level.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from flexkv_connectors.session.orders import RankReport, StepOrders
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import TransferPlan

__all__ = ["VllmOrders", "VllmReports"]


@dataclass(kw_only=True)
class VllmOrders(StepOrders, KVConnectorMetadata):
    """Orders for one step of vLLM, which frees the pages of a request as soon as it ends."""

    late_saves: list[TransferPlan] = field(default_factory=list)
    """Started before the forward pass: their requests have ended, and it may reuse their pages."""

    pools: Mapping[int, PoolAddress] = field(default_factory=dict)
    """Host pools by owner rank, until every replica rank has attached to its owner's."""


@dataclass
class VllmReports(KVConnectorWorkerMetadata):
    """The reports of one rank or of several; vLLM joins all of a step into one."""

    reports: list[RankReport]

    @property
    def refusal(self) -> str:
        """Why a rank cannot take part, in one clause; empty if all do."""
        return next((report.refusal for report in self.reports if report.refusal), "")

    @override
    def aggregate(self, other: KVConnectorWorkerMetadata) -> "VllmReports":
        assert isinstance(other, VllmReports)
        return VllmReports(self.reports + other.reports)
