"""The worker half: reads vLLM's tensors, and orders copies around its forward pass."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.session.promises import Promises
from flexkv_connectors.session.worker import WorkerSession
from flexkv_connectors.vllm.cpu_pages import VEC, split_vec
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_connectors.vllm.kv_caches import layers_of, page_pool
from flexkv_connectors.vllm.layout_probe import probe
from flexkv_connectors.vllm.metadata import VllmOrders, VllmReports
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import TransferPlan

if TYPE_CHECKING:
    import torch

__all__ = ["WorkerHalf"]


class WorkerHalf:
    """Moves one rank's bytes for vLLM's model runner. Thread: the model runner's."""

    def __init__(
        self, deployment: VllmDeployment, promises: Promises, origin: Origin | None
    ) -> None:
        """Serve this rank, as `WorkerSession` does; `promises` are settled when loads end."""
        self.session = WorkerSession(deployment, origin)
        self._deployment = deployment
        self._promises = promises
        self._unsaved: list[TransferPlan] = []
        """Saves of this step, until its forward pass is over."""

    def register(self, kv_caches: Mapping[str, "torch.Tensor"]) -> None:
        """Read the geometry of vLLM's tensors; an owner opens its host pool.

        Raises:
            LayoutError: The tensors are not laid out as declared, or no lane copies them.
            ConfigError: As from `WorkerSession.open`.
            TierError: As from there.
        """
        deployment, layers = self._deployment, layers_of(kv_caches)
        pages = page_pool(kv_caches, deployment.page_shape)
        probe(layers, pages)
        if deployment.page_order == VEC:
            pages = split_vec(pages, deployment.element_bytes, deployment.head_size)
        self.session.open(layers, pages)

    def begin_step(self, orders: VllmOrders) -> None:
        """Start what has to begin before the forward pass may overwrite pages."""
        if (address := orders.pools.get(self._deployment.owner)) is not None:
            self.session.attach(address)
        self.save()  # vLLM skips this in some modes; the pages are still intact here
        self.session.submit(orders.late_saves)
        self._unsaved = orders.saves
        self.session.move(orders.ssd)

    def load(self, orders: VllmOrders) -> None:
        """Fill the pages of this step's loads."""
        self.session.load(orders.loads)

    def save(self) -> None:
        """Copy a step's finished blocks out, after the forward pass has computed them."""
        plans, self._unsaved = self._unsaved, []
        self.session.submit(plans)

    def collect(self) -> None:
        """Settle the promises of loads that have ended."""
        for load, num_good_pages, _ in self.session.collect():
            self._promises.settle(load.request_id, num_good_pages)

    def take_reports(self) -> VllmReports | None:
        """Return what has happened since the last report; None for nothing."""
        report = self.session.take_report()
        return None if report == RankReport(rank=report.rank) else VllmReports([report])
