"""What the scheduler and the workers of one engine send each other, in the engine's own messages.

Engines pickle them, so these are plain classes at module level that hold nothing but builtins and
msgspec structs. Adapters extend or wrap them for what else their engine has to send.
"""

from dataclasses import dataclass, field

import msgspec

from flexkv_core.block.types import RequestId
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import TierOrders, TierReport, TransferPlan, TransferResult

__all__ = ["Load", "RankReport", "StepOrders"]


class Load(msgspec.Struct, frozen=True):
    """Pages of one request that the engine counts on being filled."""

    request_id: RequestId
    page_ids: list[int]
    plan: TransferPlan | None
    """How they are filled; None if they cannot be, or if there are none."""


@dataclass(kw_only=True)
class StepOrders:
    """What the workers do around one forward pass."""

    loads: list[Load] = field(default_factory=list)
    """Started before the pass."""

    saves: list[TransferPlan] = field(default_factory=list)
    """Started after the pass, which computes their pages."""

    ssd: TierOrders | None = None
    """For the SSD tier, where there is one and something to do."""


@dataclass(kw_only=True)
class RankReport:
    """What has happened on one rank since its last report."""

    rank: int
    results: list[TransferResult] = field(default_factory=list)
    pool: PoolAddress | None = None
    """Its host pool, once, if it owns one."""

    staging: int | None = None
    """Blocks that saves can have in flight in its device memory, once, if its pages are there."""

    ssd: TierReport | None = None
    """News of its share of the SSD tier."""

    attached: bool = False
    """Whether it has just mapped the pool of its owner."""

    refusal: str = ""
    """Why it cannot take part, in one clause; the engine is then served without caching."""
