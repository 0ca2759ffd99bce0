"""One rank's share of the SSD tier: its files, the lanes to them, and what it has to say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flexkv_connectors.common.deployment import Deployment
from flexkv_connectors.common.ssd_files import open_ssd_tier, ssd_options
from flexkv_core.namespace import Namespace
from flexkv_core.plan import TierOrders, TierReport
from flexkv_core.tiers.host import HostPool
from flexkv_core.transfer.tier_lane import TierLane
from flexkv_core.worker import HOST, Route

if TYPE_CHECKING:
    from flexkv_core.transfer.lane import Lane

__all__ = ["SsdShare"]

_RECOVERED_A_REPORT = 2048
"""Keys of 64 bytes with their parents: 130 KB in one of the engine's messages."""


class SsdShare:
    """What an owner does for the SSD tier.

    Thread: the worker's. Files are read and written by the threads of two lanes, so that loads
    never queue behind saves.
    """

    def __init__(
        self, deployment: Deployment, namespace: Namespace, pool: HostPool, quota_bytes: int
    ) -> None:
        """Open the files and begin to look for what earlier processes left.

        Raises:
            ConfigError: None of the directories can be used.
        """
        self._tier = open_ssd_tier(
            ssd_options(deployment.cache, quota_bytes),
            namespace,
            deployment.columns,
            deployment.block_format.cell_bytes,
            pool.memory,
            deployment.engine_id,
        )
        self._rank = deployment.rank
        self._keeps_name = bool(deployment.cache.weight_version)
        self._generation = ""
        self._told = (-1, False, "")
        """Capacity, end of the search and generation, as they were last reported."""

        load_lane = TierLane(deployment.rank, self._tier, pool.memory)
        save_lane = TierLane(deployment.rank, self._tier, pool.memory)
        self.lanes: Mapping[Route, Lane] = {
            Route("ssd", HOST): load_lane,
            Route(HOST, "ssd"): save_lane,
        }

    def prepare(self, orders: TierOrders) -> None:
        """Do what has to be done before the plans of `orders` begin."""
        if orders.generation:
            self._tier.begin_generation(orders.generation, keeps_name=self._keeps_name)
            self._generation = orders.generation
        self._tier.delete(orders.gone)

    def take_report(self) -> TierReport | None:
        """Return what the scheduler half has not heard yet, or None."""
        counts = self._tier.take_counts()
        recovered = self._tier.take_recovered(_RECOVERED_A_REPORT)
        capacity_blocks, is_recovered = self._tier.capacity_blocks, self._tier.is_recovered
        told = capacity_blocks, is_recovered, self._generation
        if not (counts or recovered) and told == self._told:
            return None
        self._told = told
        return TierReport(
            tier="ssd",
            rank=self._rank,
            capacity_blocks=capacity_blocks,
            recovered=recovered,
            is_recovered=is_recovered,
            counts=counts,
            generation=self._generation,
        )

    def close(self) -> None:
        """Let go of the files; nothing may be under way any more."""
        self._tier.close()
