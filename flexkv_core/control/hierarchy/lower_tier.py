"""One tier below host memory, as the scheduler side sees it."""

import secrets
from collections.abc import Collection

from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.demotion import Demoter
from flexkv_core.control.hierarchy.promotion import Promoter
from flexkv_core.control.hierarchy.restorer import Restorer
from flexkv_core.control.job import Completion
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import METRICS, Recorder
from flexkv_core.plan import TierOrders, TierReport

__all__ = ["LowerTier"]


class LowerTier:
    """Keeps a tier of the manager filled, brings its blocks back, and recovers what it held before.

    Thread: scheduler thread only. Nothing blocks; time is given by the caller.
    """

    def __init__(
        self,
        manager: CacheManager,
        tier: str,
        *,
        owners: Collection[int],
        block_bytes: int,
        timeout_s: float,
        recorder: Recorder,
    ) -> None:
        """Serve tier `tier` of `manager`.

        Args:
            manager: Has this tier and one called "host".
            tier: Its name.
            owners: Ranks that keep a share of every block.
            block_bytes: Size of one owner's share.
            timeout_s: The longest that a request waits for this tier.
            recorder: Where counts go.
        """
        self._manager = manager
        self._tier = tier
        self._recorder = recorder
        capacity_blocks = manager.num_free_blocks(tier) + manager.num_used_blocks(tier)
        host_blocks = manager.num_free_blocks("host") + manager.num_used_blocks("host")
        self.promoter = Promoter(
            manager,
            tier,
            block_bytes=block_bytes,
            host_blocks=host_blocks,
            timeout_s=timeout_s,
            recorder=recorder,
        )
        self.demoter = Demoter(
            manager,
            tier,
            capacity_blocks=capacity_blocks,
            block_bytes=block_bytes,
            host_blocks=host_blocks,
            recorder=recorder,
        )
        self._restorer = Restorer(manager, tier, owners, recorder)
        self._capacities = dict.fromkeys(owners, capacity_blocks)
        self._useless: list[BlockKey] = []
        self._generation = ""
        self._must_order_generation = False

    @property
    def capacity_blocks(self) -> int:
        """Blocks that every owner has room for."""
        return min(self._capacities.values())

    @property
    def is_off(self) -> bool:
        """Whether reading or writing fails and is switched off, except for trials."""
        return self.promoter.is_off or self.demoter.is_off

    @property
    def is_restoring(self) -> bool:
        """Whether blocks of earlier processes may still be found."""
        return not self._restorer.is_over

    @property
    def has_work(self) -> bool:
        """Whether there is work that only proceeds while the engine steps, now or later."""
        return self._must_order_generation or self.demoter.has_work or self.is_restoring

    @property
    def can_proceed(self) -> bool:
        """Whether another step brings work forward.

        Not while an owner learns what its blocks are blocks of: it may take minutes, and hashes no
        faster for an engine that steps meanwhile.
        """
        if self._restorer.is_over:
            return self._must_order_generation or self.demoter.has_work
        return self._must_order_generation or self._restorer.can_proceed

    def handle_report(self, report: TierReport) -> None:
        """Take in an owner's report."""
        for name, value in report.counts.items():
            record = self._recorder.add if METRICS[name].kind == "counter" else self._recorder.set
            record(name, value)
        if report.rank in self._capacities:
            self._capacities[report.rank] = report.capacity_blocks
            if report.generation == self._generation:
                self._restorer.note(report)

    def conclude(self, completion: Completion, now_s: float) -> None:
        """Learn from a copy between tiers that has ended."""
        if not self.promoter.conclude(completion, now_s):
            self.demoter.conclude(completion, now_s)

    def take_orders(self, now_s: float) -> TierOrders:
        """Return the workers' next orders."""
        self._manager.resize(self.capacity_blocks, tier=self._tier)
        if not self._restorer.is_over:
            self._useless += self._restorer.step()
        plans = self.promoter.take_plans(now_s)
        # Until the workers have reported what they hold, they do not know where there is room. They
        # may not even have opened the tier, at the start or when a generation begins.
        if self._restorer.is_over:
            plans += self.demoter.take_plans(now_s)
        gone, self._useless = self._useless + self._manager.take_gone(self._tier), []
        generation = self._generation if self._must_order_generation else ""
        self._must_order_generation = False
        return TierOrders(generation=generation, gone=gone, plans=plans)

    def reset(self) -> None:
        """Begin a new generation, after the manager was reset: nothing older is ever used again.

        The tier is used again once every owner has reported this generation.
        """
        self._generation = secrets.token_hex(8)
        self._must_order_generation = True
        self._restorer = Restorer(self._manager, self._tier, self._capacities, self._recorder)
        self._useless = []
        self.demoter.clear()
        self.promoter.reset()
