"""The worker half: turns a step's orders into verbs of `CacheWorker`, and results into a report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from flexkv_connectors.session.host_pool import host_budget_bytes, open_host_pool
from flexkv_connectors.session.rank_share import RankShare
from flexkv_connectors.vllm.cpu_pages import VEC, split_vec
from flexkv_connectors.vllm.deployment import Deployment
from flexkv_connectors.vllm.kv_caches import layers_of, page_pool
from flexkv_connectors.vllm.layout_probe import probe
from flexkv_connectors.vllm.ledger import LoadLedger
from flexkv_connectors.vllm.metadata import Load, StepOrders, StepReport
from flexkv_core.block.layout import PagePool
from flexkv_core.block.types import JobId
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import EnginePages, Place, TransferPlan, TransferResult

if TYPE_CHECKING:
    import torch

__all__ = ["WorkerHalf"]


class WorkerHalf:
    """Moves one rank's bytes for vLLM's model runner.

    Thread: the model runner's. On a CPU the copies between engine and host memory are done when a
    hook returns: they run inside `load` and `save`, between forward passes. On a GPU the hooks only
    queue them. Those between host memory and SSD have threads of their own.
    """

    def __init__(self, deployment: Deployment, ledger: LoadLedger, origin: Origin | None) -> None:
        """Serve this rank.

        Args:
            deployment: The engine's shape.
            ledger: What is owed to the engine.
            origin: What the blocks on SSD are blocks of; None where there is no SSD tier.

        Raises:
            ConfigError: The machine does not have the memory that was asked for.
        """
        self._deployment = deployment
        self._origin = origin
        self._ledger = ledger
        # Asked here, before any rank has taken its part: later the others' would count as used.
        self._budget_bytes = host_budget_bytes(deployment) if deployment.is_owner else 0
        self._report = StepReport()
        self._layers: list[torch.Tensor] = []
        self._pages: PagePool | None = None
        self._share: RankShare | None = None
        self._unsaved: list[TransferPlan] = []
        self._loading: dict[JobId, Load] = {}

    def register(self, kv_caches: Mapping[str, "torch.Tensor"]) -> None:
        """Read the geometry of the engine's tensors; an owner opens its host pool.

        Raises:
            LayoutError: The tensors are not laid out as declared.
            ConfigError: The host tier does not fit into this machine, or the SSD tier has no
                directory, or the GPU is full.
            TierError: Host memory cannot be had, or not be pinned.
        """
        self._layers = layers_of(kv_caches)
        self._pages = self._read_pages(kv_caches)
        if self._deployment.is_owner:
            pool = open_host_pool(self._deployment, self._budget_bytes)
            self._report.pools[self._deployment.rank] = pool.address
            share = self._open(pool)
            if share.save_places is not None:
                self._report.staging[self._deployment.rank] = share.save_places

    def _read_pages(self, kv_caches: Mapping[str, "torch.Tensor"]) -> PagePool:
        deployment = self._deployment
        pages = page_pool(kv_caches, deployment.page_shape)
        probe(self._layers, pages)
        if deployment.page_order == VEC:
            return split_vec(pages, deployment.element_bytes, deployment.head_size)
        return pages

    def begin_step(self, orders: StepOrders) -> None:
        """Do what must happen before the forward pass may overwrite pages."""
        self._attach(orders)
        # vLLM skips the call after the forward pass in some modes; the pages are still intact here.
        self._submit_saves(self._unsaved)
        self._submit_saves(orders.late_saves)
        self._unsaved = orders.saves
        if self._share is not None and orders.ssd is not None:
            self._share.move(orders.ssd)

    def load(self, orders: StepOrders) -> None:
        """Fill the pages of this step's loads."""
        for load in orders.loads:
            if load.plan is None or self._share is None:
                self._ledger.settle(load.request_id, 0)
                continue
            self._loading[load.plan.job_id] = load
            self._share.worker.submit(self._in_kernel_pages(load.plan))

    def save(self) -> None:
        """Copy this step's finished blocks out, after the forward pass has computed them."""
        self._submit_saves(self._unsaved)
        self._unsaved = []

    def take_report(self) -> StepReport | None:
        """Return what the scheduler half has not heard yet, or None."""
        report, self._report = self._report, StepReport()
        ssd = None if self._share is None else self._share.ssd
        if ssd is not None and (told := ssd.take_report()):
            report.tiers.append(told)
        return None if report == StepReport() else report

    @property
    def is_idle(self) -> bool:
        """Whether no copy that was begun can still write into a page."""
        return self._share is None or self._share.is_idle

    def shutdown(self) -> None:
        """Stop copying and give the host memory back."""
        if self._share is not None:
            self._share.close()

    def _open(self, pool: HostPool) -> RankShare:
        assert self._pages is not None
        self._share = RankShare(self._deployment, self._layers, self._pages, pool, self._origin)
        return self._share

    def _attach(self, orders: StepOrders) -> None:
        address = orders.pools.get(self._deployment.owner)
        if address is None or self._share is not None:
            return
        self._open(HostPool.attach(address))
        self._report.attached.add(self._deployment.rank)

    def _submit_saves(self, plans: list[TransferPlan]) -> None:
        if self._share is None:
            return
        for plan in plans:
            self._share.worker.submit(self._in_kernel_pages(plan))

    def collect(self) -> None:
        """Take in what has ended."""
        if self._share is None:
            return
        for result in self._share.worker.poll():
            self._report.results.append(result)
            if result.job_id in self._loading:
                self._settle(result)

    def _settle(self, result: TransferResult) -> None:
        load = self._loading.pop(result.job_id)
        assert load.plan is not None
        assert isinstance(load.plan.target, EnginePages)
        good_pages = result.num_blocks * self._deployment.pages_per_block
        self._ledger.settle(load.request_id, max(good_pages - load.plan.target.first_page, 0))

    def _in_kernel_pages(self, plan: TransferPlan) -> TransferPlan:
        """Translate vLLM's block ids to rows of its tensors, where kernels use smaller blocks."""
        assert self._pages is not None
        ratio = self._deployment.page_shape.page_tokens // self._pages.page_tokens
        if ratio == 1:
            return plan
        return msgspec.structs.replace(
            plan, source=_split_pages(plan.source, ratio), target=_split_pages(plan.target, ratio)
        )


def _split_pages(place: Place, ratio: int) -> Place:
    if not isinstance(place, EnginePages):
        return place
    rows = [page * ratio + row for page in place.page_ids for row in range(ratio)]
    return EnginePages(rows, place.first_page * ratio)
