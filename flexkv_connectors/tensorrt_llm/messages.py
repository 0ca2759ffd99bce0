"""What the ranks of one engine tell each other, in its own MPI messages.

Orders go from the scheduler half to every worker half, as the engine's metadata. Reports go the
other way; the engine has no message for them, see `exchange`.
"""

import msgspec

from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import TierOrders, TierReport, TransferPlan, TransferResult

__all__ = ["Load", "StepOrders", "StepReport"]


class Load(msgspec.Struct, frozen=True):
    """One request's pages to fill, promised to the engine."""

    request_id: int
    plan: TransferPlan | None
    """How; None if the engine has taken the whole offer back, and there is nothing to fill."""


class StepOrders(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers do around one forward pass."""

    loads: list[Load] = []
    """Before it."""

    saves: list[TransferPlan] = []
    """After it: their pages are computed by it."""

    ssd: TierOrders | None = None
    """For the SSD tier, where there is one and something to do."""

    listens: bool = False
    """Whether the scheduler half wants reports although no plan is under way."""


class StepReport(msgspec.Struct, kw_only=True):
    """What has happened on one rank since its last report."""

    rank: int
    results: list[TransferResult] = []
    pool: PoolAddress | None = None
    """Its host pool, once, if it owns one."""

    staging: int | None = None
    """Blocks that saves can have under way in its device memory, once, if its pages are there."""

    tiers: list[TierReport] = []
    """What it says of its share of the SSD tier."""

    refusal: str = ""
    """Why it cannot take part, in one clause; the engine is then served without caching."""

    must_stop: bool = False
    """The engine counts on pages that this rank will not fill: every rank stops with it."""
