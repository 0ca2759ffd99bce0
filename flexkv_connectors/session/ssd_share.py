"""One rank's share of the SSD tier: its files, the lanes to them, and what it reports."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flexkv_connectors.session.deployment import Deployment
from flexkv_core.block.namespace import Namespace
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.directory import require_folders
from flexkv_core.data.tiers.ssd.from_config import (
    nominal_blocks,
    record_reset,
    ssd_options,
)
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.data.worker import HOST, Route
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import TierOrders, TierReport

if TYPE_CHECKING:
    from flexkv_core.data.transfer.lane import Lane

__all__ = ["SsdShare"]

_MAX_RECOVERED_PER_REPORT = 2048
"""Keys of 64 bytes with their parents: 130 KB in one of the engine's messages."""


class SsdShare:
    """The part of the SSD tier that one owner keeps.

    The files are opened once the model is identified and a directory can be used. Until then the
    share reports how much it will hold, and the scheduler's side orders nothing.

    Thread: the worker's. Files are opened by the thread that identifies the model, and read and
    written by the threads of two lanes, so that loads never queue behind saves.
    """

    def __init__(
        self, deployment: Deployment, origin: Origin, pool: HostPool, quota_bytes: int
    ) -> None:
        """Begin to identify the model; its files are opened once it is known, on another thread.

        Raises:
            ConfigError: None of the directories can be a folder.
        """
        self._deployment = deployment
        self._pool = pool
        self._origin = origin
        self._options = ssd_options(deployment.cache, quota_bytes)
        require_folders(self._options)
        self._generation = ""
        """The last that the scheduler's side has ordered."""

        self._begun = ""
        """The last that the tier has begun, which opens later than orders come."""

        self._reported: tuple[object, ...] = ()
        """Capacity, end of the search and generation, as they were last reported."""

        self._lanes: Mapping[Route, Lane] = {}
        self._tier: SsdTier | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        """Held while files are opened, and while `stop` decides that they never will be."""

        # Last: it calls `_open` at once where the model is known already.
        self._identification = origin.find(deployment.cache, self._open)

    def take_lanes(self) -> Mapping[Route, "Lane"]:
        """Return the lanes between files and host memory, once, when the files are open."""
        if self._tier is None:
            return {}
        lanes, self._lanes = self._lanes, {}
        return lanes

    def prepare(self, orders: TierOrders) -> None:
        """Carry out the part of `orders` that comes before its plans."""
        if orders.generation:
            self._generation = orders.generation
            self._record_reset()
        tier = self._current_tier()
        if tier is not None:
            tier.delete(orders.gone)

    def take_report(self) -> TierReport | None:
        """Return what has changed since the last report, or None."""
        tier = self._current_tier()
        counts = {} if tier is None else tier.take_counts()
        recovered = [] if tier is None else tier.take_recovered(_MAX_RECOVERED_PER_REPORT)
        is_over = self._identification.is_unknown if tier is None else tier.is_recovered
        capacity_blocks = self._expected_blocks() if tier is None else tier.capacity_blocks
        state = capacity_blocks, is_over, self._generation
        if state == self._reported and not (counts or recovered):
            return None
        self._reported = state
        return TierReport(
            tier="ssd",
            rank=self._deployment.rank,
            generation=self._generation,
            capacity_blocks=capacity_blocks,
            recovered=recovered,
            is_recovered=is_over,
            counts=counts,
        )

    def stop(self) -> None:
        """Open no more files, and close lanes that were not taken."""
        self._identification.close()  # without the lock: it waits for an `_open` under way
        with self._lock:
            self._is_closed = True
            for lane in self._lanes.values():
                lane.close()

    def close(self) -> None:
        """Close the files, after `stop`; no copy may be in flight."""
        if self._tier is not None:
            self._tier.close()

    def _open(self, namespace: Namespace) -> None:
        """Open the files of `namespace`, and begin to recover what earlier processes left.

        Raises:
            TierError: None of the directories can be used now.
        """
        deployment, memory = self._deployment, self._pool.memory
        with self._lock, ExitStack() as undo:
            if self._is_closed:
                return
            share = BlockShare(
                namespace,
                deployment.columns,
                deployment.block_format.cell_bytes,
                deployment.engine_id,
            )
            tier = SsdTier(memory, share, self._options)
            undo.callback(tier.close)
            load_lane = TierLane(deployment.rank, tier, memory)
            undo.callback(load_lane.close)
            save_lane = TierLane(deployment.rank, tier, memory)
            undo.pop_all()
            self._lanes = {Route("ssd", HOST): load_lane, Route(HOST, "ssd"): save_lane}
            self._tier = tier  # last: from here on the worker's thread uses all of it

    def _record_reset(self) -> None:
        """Make a reset outlive this process, even if this process never opens the files.

        A tier that another thread opens meanwhile begins the same generation before it is used.
        """
        if self._tier is None:
            columns = self._deployment.columns
            record_reset(self._options, self._origin.blank, columns, self._generation)

    def _current_tier(self) -> SsdTier | None:
        """Return the tier, in the generation that was ordered last; None until it is open."""
        tier = self._tier
        if tier is not None and self._begun != self._generation:
            keeps_name = bool(self._deployment.cache.weight_version)
            tier.begin_generation(self._generation, keeps_name=keeps_name)
            self._begun = self._generation
        return tier

    def _expected_blocks(self) -> int:
        """Return how many blocks there will be room for once the files are open."""
        if self._identification.is_unknown:
            return 0
        deployment = self._deployment
        cell_bytes = deployment.block_format.cell_bytes
        return nominal_blocks(self._options, len(deployment.columns), cell_bytes)
