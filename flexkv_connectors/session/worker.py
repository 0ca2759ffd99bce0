"""The worker's side of a session: one rank's memory, files, and the lanes between them."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.orders import Load, RankReport
from flexkv_connectors.session.ssd_share import SsdShare
from flexkv_core.block.layout import PagePool
from flexkv_core.block.types import JobId
from flexkv_core.data.host_memory import check_host_bytes, default_cache_bytes
from flexkv_core.data.tiers.host import HostPool, PoolAddress, num_slots_in, slot_stride
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.worker import HOST, PAGES, CacheWorker, Route
from flexkv_core.errors import ConfigError
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import Endpoint, EnginePages, Status, TierOrders, TransferPlan, TransferResult

if TYPE_CHECKING:
    import torch

    from flexkv_connectors.session.gpu_share import GpuShare
    from flexkv_core.data.transfer.lane import Lane

__all__ = ["EndedLoad", "WorkerSession", "are_on_gpu", "host_budget_bytes"]

_DRAIN_S = 2.0
"""Engines kill a worker that takes 4 s to stop."""


class EndedLoad(NamedTuple):
    """How one load has ended on this rank."""

    load: Load
    num_good_pages: int
    """Leading pages of the load that are filled."""

    failure: str
    """Why the other pages are not, in one clause; empty if all are filled."""


class WorkerSession:
    """A rank's host pool, its share of the SSD tier if it owns one, and the worker over both.

    Until there is a pool, everything that is submitted is refused.

    Thread: the engine's worker. On a CPU, copies between engine and host memory are done when they
    are submitted. On a GPU they are only queued. Those between host memory and SSD have threads of
    their own.
    """

    def __init__(self, deployment: Deployment, origin: Origin | None) -> None:
        """Serve this rank.

        Args:
            deployment: The engine's shape.
            origin: What the blocks on SSD are blocks of; None where there is no SSD tier.

        Raises:
            ConfigError: The machine does not have the memory that was asked for.
        """
        self.worker = CacheWorker(deployment.rank, {}, is_owner=deployment.is_owner)
        self.pool: HostPool | None = None
        self.ssd: SsdShare | None = None
        self._deployment = deployment
        self._origin = origin
        # Before any rank has taken its part: later, those of other ranks would count as used.
        self._budget_bytes = host_budget_bytes(deployment) if deployment.is_owner else 0
        self._layers: Sequence[torch.Tensor] = ()
        self._pages: PagePool | None = None
        self._lane: Lane | None = None
        self._gpu: GpuShare | None = None
        self._loads: dict[JobId, Load] = {}
        self._ended_loads: list[EndedLoad] = []
        self._report = RankReport(rank=deployment.rank)

    def open(self, layers: "Sequence[torch.Tensor]", pages: PagePool) -> None:
        """Take over the engine's pages; an owner opens its host pool, and its SSD share if any.

        Args:
            layers: The engine's KV, `[B, H, N, C]` for each layer, or for each layer and plane.
            pages: The same, described.

        Raises:
            ConfigError: The host tier does not fit into this machine, or the SSD tier has no
                directory, or the GPU is full.
            LayoutError: No lane copies such pages.
            TierError: Host memory cannot be had, or not be pinned.
        """
        self._layers, self._pages = layers, pages
        if not self._deployment.is_owner:
            return
        pool = _open_host_pool(self._deployment, self._budget_bytes)
        self._serve(pool, pages)
        self._report.pool = pool.address
        self._report.staging = None if self._gpu is None else self._gpu.lane.save_places

    def attach(self, address: PoolAddress) -> None:
        """Read the pool of this rank's owner, unless this rank has one.

        Raises:
            ConfigError: The GPU is full.
            TierError: The owner is on another node, or the pool cannot be pinned.
        """
        if self.pool is None:
            assert self._pages is not None, "pages are registered first"
            self._serve(HostPool.attach(address), self._pages)
            self._report.attached = True

    def load(self, loads: Iterable[Load]) -> None:
        """Start loads; those without a plan end at once, with nothing filled."""
        plans: list[TransferPlan] = []
        for load in loads:
            if load.plan is None:
                self._ended_loads.append(EndedLoad(load, 0, ""))
            else:
                self._loads[load.plan.job_id] = load
                plans.append(self._in_rows(load.plan))
        self.worker.submit(plans)

    def submit(self, plans: Iterable[TransferPlan]) -> None:
        """Start copies that are no loads."""
        self.worker.submit([self._in_rows(plan) for plan in plans])

    def move(self, orders: TierOrders | None) -> None:
        """Start copies between host memory and SSD; they go on beside the forward passes."""
        if self.ssd is not None and orders is not None:
            self.ssd.prepare(orders)  # first: it begins the generation that the plans are of
            self.worker.add(self.ssd.take_lanes())
            self.submit(orders.plans)

    def collect(self) -> list[EndedLoad]:
        """Take in the copies that have ended; return the loads among them."""
        ended, self._ended_loads = self._ended_loads, []
        results = self.worker.poll()
        self._report.results += results
        return ended + [self._end(result) for result in results if result.job_id in self._loads]

    def take_report(self) -> RankReport:
        """Return what has happened since the last report."""
        report, self._report = self._report, RankReport(rank=self._deployment.rank)
        report.ssd = None if self.ssd is None else self.ssd.take_report()
        return report

    @property
    def is_idle(self) -> bool:
        """Whether no copy in flight can still write into a page."""
        return self._lane is None or self._lane.drain(timeout_s=0.0)

    def hold_compute(self) -> None:
        """Make the engine's next forward pass wait for all loads that were submitted."""
        if self._gpu is not None:
            self._gpu.lane.hold_compute()

    def shutdown(self) -> None:
        """Stop copying and free everything, but for what a stuck copy may still use."""
        drained = self.worker.shutdown(_DRAIN_S)
        if self._gpu is not None and drained:
            self._gpu.close()
        if self.ssd is not None:
            self.ssd.stop()
        if self.ssd is not None and drained:
            self.ssd.close()
        if self.pool is not None:
            self.pool.close()

    def _serve(self, pool: HostPool, pages: PagePool) -> None:
        """Begin to copy between the engine's pages and `pool`."""
        deployment, quota_bytes = self._deployment, self._deployment.ssd_quota_bytes
        self.pool = pool
        if deployment.is_owner and self._origin is not None and quota_bytes is not None:
            self.ssd = SsdShare(deployment, self._origin, pool, quota_bytes)
        self._lane = lane = self._open_lane(pool, pages)
        self.worker.add({Route(PAGES, HOST): lane, Route(HOST, PAGES): lane})

    def _open_lane(self, pool: HostPool, pages: PagePool) -> "Lane":
        """Open a lane for the kind of memory that the engine's tensors are in."""
        deployment = self._deployment
        if are_on_gpu(self._layers):
            from flexkv_connectors.session.gpu_share import (  # noqa: PLC0415 it imports Triton
                GpuShare,
            )

            self._gpu = GpuShare(deployment, self._layers, pages, pool)
            return self._gpu.lane
        if deployment.is_owner:
            pool.prefault()
        return CpuLane(
            deployment.rank,
            pages,
            deployment.block_format,
            pool,
            num_threads=deployment.cache.copy_threads or _default_threads(),
        )

    def _end(self, result: TransferResult) -> EndedLoad:
        load = self._loads.pop(result.job_id)
        assert load.plan is not None
        assert isinstance(load.plan.target, EnginePages)
        good_pages = result.num_blocks * self._deployment.pages_per_block
        num_good_pages = max(0, good_pages - load.plan.target.first_page)
        failure = "" if result.status is Status.OK else result.error or result.status.name
        return EndedLoad(load, num_good_pages, failure)

    def _in_rows(self, plan: TransferPlan) -> TransferPlan:
        """Translate page ids to rows of the engine's tensors, if its kernels use smaller pages."""
        if self._pages is None or self._pages.page_tokens == self._deployment.page_tokens:
            return plan
        ratio = self._deployment.page_tokens // self._pages.page_tokens
        return msgspec.structs.replace(
            plan, source=_split_pages(plan.source, ratio), target=_split_pages(plan.target, ratio)
        )


def are_on_gpu(layers: "Sequence[torch.Tensor]") -> bool:
    """Return whether an engine's KV is in device memory; all tensors are where the first is."""
    return bool(layers[0].is_cuda)


def host_budget_bytes(deployment: Deployment) -> int:
    """Return the bytes that this rank's pool may take.

    `cpu_cache_gb` is for one engine on one node: its ranks there share it. Without it, the engines
    that know of each other take equal parts of what is free.

    Raises:
        ConfigError: The machine or the container has less than was configured.
    """
    asked = deployment.cache.cpu_cache_bytes
    if asked is None:
        return default_cache_bytes(deployment.num_engines) // deployment.num_local_owners
    check_host_bytes(asked)
    return asked // deployment.num_local_owners


def _open_host_pool(deployment: Deployment, budget_bytes: int) -> HostPool:
    """Open this rank's pool in at most `budget_bytes`.

    Raises:
        ConfigError: Not even one block fits.
        TierError: The kernel does not give the memory.
    """
    slot_bytes = deployment.block_format.block_bytes
    num_slots = num_slots_in(budget_bytes, slot_bytes)
    if num_slots < 1:
        msg = (
            f"the host tier gets {budget_bytes} bytes on this rank, but one block takes "
            f"{slot_stride(slot_bytes)}: raise cpu_cache_gb, or lower block_tokens"
        )
        raise ConfigError(msg)
    return HostPool.create(
        num_slots, slot_bytes, huge_pages=deployment.cache.use_hugepage_cpu_buffer
    )


def _default_threads() -> int:
    """Return how many threads copy: an engine may pin a worker, and its threads, to some cores."""
    return min(2, len(os.sched_getaffinity(0)))


def _split_pages(place: Endpoint, ratio: int) -> Endpoint:
    if not isinstance(place, EnginePages):
        return place
    rows = [page * ratio + row for page in place.page_ids for row in range(ratio)]
    return EnginePages(rows, place.first_page * ratio)
