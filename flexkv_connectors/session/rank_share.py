"""What one rank has of the tiers: memory, files, and the lanes between them and its pages."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.ssd_share import SsdShare
from flexkv_core.block.layout import PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.worker import HOST, PAGES, CacheWorker, Route
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import TierOrders

if TYPE_CHECKING:
    import torch

    from flexkv_connectors.session.gpu_share import GpuShare
    from flexkv_core.data.transfer.lane import Lane

__all__ = ["RankShare", "are_on_gpu"]

_DRAIN_S = 2.0
"""Engines kill a worker that takes 4 s to stop."""


def are_on_gpu(layers: "Sequence[torch.Tensor]") -> bool:
    """Tell whether an engine's KV is in device memory; the first tensor speaks for all."""
    return bool(layers[0].is_cuda)


class RankShare:
    """A rank's host pool, its share of the SSD tier if it owns one, and the worker over both.

    Thread: the engine's worker.
    """

    def __init__(
        self,
        deployment: Deployment,
        layers: "Sequence[torch.Tensor]",
        pages: PagePool,
        pool: HostPool,
        origin: Origin | None,
    ) -> None:
        """Open everything, but for files whose content is not known yet.

        Args:
            deployment: The engine's shape.
            layers: The engine's KV, `[B, H, N, C]` for each layer, or for each layer and plane.
            pages: The same, described.
            pool: The rank's own, or the one of its owner.
            origin: What the blocks on SSD are blocks of; None where there is no SSD tier.

        Raises:
            ConfigError: The SSD tier has no directory, or the GPU is full.
            LayoutError: No lane copies such pages.
            TierError: The pool cannot be pinned.
        """
        self._deployment = deployment
        self.pool = pool
        self.ssd = self._open_ssd(origin)
        self._gpu: GpuShare | None = None
        self._lane = lane = self._open_lane(layers, pages)
        lanes: dict[Route, Lane] = {Route(PAGES, HOST): lane, Route(HOST, PAGES): lane}
        self.worker = CacheWorker(deployment.rank, lanes, is_owner=deployment.is_owner)

    @property
    def save_places(self) -> int | None:
        """Blocks that saves may have under way at once; None where there is no bound."""
        return None if self._gpu is None else self._gpu.lane.save_places

    @property
    def is_idle(self) -> bool:
        """Whether no copy that was begun can still write into a page."""
        return self._lane.drain(timeout_s=0.0)

    def move(self, orders: TierOrders) -> None:
        """Start copies between host memory and SSD; they go on beside the forward passes."""
        if self.ssd is None:
            return
        self.ssd.prepare(orders)
        self.worker.add(self.ssd.take_lanes())
        for plan in orders.plans:
            self.worker.submit(plan)

    def hold_compute(self) -> None:
        """Let the engine's next pass run behind all loads that were submitted."""
        if self._gpu is not None:
            self._gpu.lane.hold_compute()

    def close(self) -> None:
        """Stop copying and give all of it back, but for what a stuck copy may still use."""
        drained = self.worker.shutdown(_DRAIN_S)
        if self._gpu is not None and drained:
            self._gpu.close()
        if self.ssd is not None:
            self.ssd.stop()
        if self.ssd is not None and drained:
            self.ssd.close()
        self.pool.close()

    def _open_ssd(self, origin: Origin | None) -> SsdShare | None:
        deployment, quota_bytes = self._deployment, self._deployment.ssd_quota_bytes
        if not deployment.is_owner or origin is None or quota_bytes is None:
            return None
        return SsdShare(deployment, origin, self.pool, quota_bytes)

    def _open_lane(self, layers: "Sequence[torch.Tensor]", pages: PagePool) -> "Lane":
        """Open the lane to where the engine's tensors lie."""
        deployment = self._deployment
        if are_on_gpu(layers):
            from flexkv_connectors.session.gpu_share import (  # noqa: PLC0415 it imports Triton
                GpuShare,
            )

            self._gpu = GpuShare(deployment, layers, pages, self.pool)
            return self._gpu.lane
        if deployment.is_owner:
            self.pool.prefault()
        return CpuLane(
            deployment.rank,
            pages,
            deployment.block_format,
            self.pool,
            num_threads=deployment.cache.copy_threads or _default_threads(),
        )


def _default_threads() -> int:
    """Return how many threads copy: vLLM pins a worker, and what it starts, to some cores."""
    return min(2, len(os.sched_getaffinity(0)))
