"""What crosses the border between vLLM's scheduler and its workers, in each direction.

Both travel in the engine's own messages, which pickle them, so these are plain classes at module
level that hold nothing but msgspec structs and builtins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import TierOrders, TierReport, TransferPlan, TransferResult

__all__ = ["Load", "StepOrders", "StepReport"]


class Load(msgspec.Struct, frozen=True):
    """One request's pages to fill, promised to the engine."""

    request_id: str
    page_ids: list[int]
    """Pages that the engine believes will be filled."""

    plan: TransferPlan | None
    """How; None if the promise cannot be kept and is to be reported as failed."""


@dataclass
class StepOrders(KVConnectorMetadata):
    """What the workers do around one forward pass."""

    loads: list[Load] = field(default_factory=list)
    saves: list[TransferPlan] = field(default_factory=list)
    """After the forward pass: their pages are computed by it."""

    late_saves: list[TransferPlan] = field(default_factory=list)
    """Before the forward pass: their requests have ended and their pages may be reused by it."""

    ssd: TierOrders | None = None
    """For the SSD tier, where there is one and something to do."""

    pools: Mapping[int, PoolAddress] = field(default_factory=dict)
    """Host pools by owner rank, until every replica rank has attached to its owner's."""


@dataclass
class StepReport(KVConnectorWorkerMetadata):
    """What has happened on the workers since the last report."""

    results: list[TransferResult] = field(default_factory=list)
    pools: dict[int, PoolAddress] = field(default_factory=dict)
    """Newly opened host pools by owner rank."""

    staging: dict[int, int] = field(default_factory=dict)
    """Blocks that saves may have under way at once, by owner rank, where there is a bound."""

    tiers: list[TierReport] = field(default_factory=list)
    """What owners say of their shares of the SSD tier."""

    attached: set[int] = field(default_factory=set)
    """Replica ranks that have just attached to their owner's pool."""

    refusal: str = ""
    """Why a rank cannot take part, in one clause; the connector then stays out."""

    @override
    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """Join two ranks' reports; vLLM folds all of a step into one."""
        assert isinstance(other, StepReport)
        return StepReport(
            results=self.results + other.results,
            pools=self.pools | other.pools,
            staging=self.staging | other.staging,
            tiers=self.tiers + other.tiers,
            attached=self.attached | other.attached,
            refusal=self.refusal or other.refusal,
        )
