"""The classes that TensorRT-LLM calls. They only delegate, each hook through a fault barrier."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from typing_extensions import override

from flexkv_connectors.fault_barrier import (
    FaultBarrier,
    nothing,
    refusals_in_one_line,
)
from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.session.promises import Promises
from flexkv_connectors.session.worker import are_on_gpu
from flexkv_connectors.tensorrt_llm.answers import Answers
from flexkv_connectors.tensorrt_llm.deployment import read_cache_config, translate
from flexkv_connectors.tensorrt_llm.exchange import Exchange, ExchangeOrders, StopReport
from flexkv_connectors.tensorrt_llm.identity import origin_of, why_no_identity
from flexkv_connectors.tensorrt_llm.interface import (
    connector_interface,
    gather_reports,
    own_rank,
    require_engine,
)
from flexkv_connectors.tensorrt_llm.mailbox import mailbox_of
from flexkv_connectors.tensorrt_llm.pages import page_pool_of, slabs_of_layout, slabs_of_pool
from flexkv_connectors.tensorrt_llm.scheduler import SchedulerHalf
from flexkv_connectors.tensorrt_llm.settings import EngineSettings, read_settings
from flexkv_connectors.tensorrt_llm.worker import WorkerHalf
from flexkv_core.errors import BrokenPromiseError, ConfigError, FlexKVError
from flexkv_core.identity.origin import Origin

if TYPE_CHECKING:
    import torch
    from tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector import (
        KvCacheConnectorScheduler,
        KvCacheConnectorWorker,
    )
else:
    KvCacheConnectorScheduler = connector_interface().KvCacheConnectorScheduler
    KvCacheConnectorWorker = connector_interface().KvCacheConnectorWorker

__all__ = ["FlexKVScheduler", "FlexKVWorker", "Setup"]

T = TypeVar("T")

_NO_GPU = "its KV is on a GPU, where FlexKV has never run: set FLEXKV_ENABLE_GPU=true to try it"

logger = logging.getLogger(__name__)


class Setup(NamedTuple):
    """What both halves of one rank read from the engine's arguments, with the same result."""

    settings: EngineSettings
    deployment: Deployment
    origin: Origin | None
    """What the blocks on SSD are blocks of; None where there is no SSD tier."""


def _set_up(arguments: object) -> Setup:
    require_engine(arguments)
    cache, settings = read_cache_config(), read_settings(arguments)
    deployment = translate(settings, cache, own_rank())
    if cache.ssd_cache_bytes is None:
        return Setup(settings, deployment, None)
    if reason := why_no_identity(settings, cache.weight_version):
        logger.warning("tier.off tier=ssd: serving without it, because %s", reason)
        return Setup(settings, deployment, None)
    return Setup(settings, deployment, origin_of(settings, deployment))


def _alone(report: RankReport) -> list[RankReport]:
    """Gather the reports of one rank."""
    return [report]


class FlexKVScheduler(KvCacheConnectorScheduler):
    """FlexKV behind TensorRT-LLM, on the rank that schedules.

    Thread: that of the engine's executor, but for the constructor.
    """

    supports_attention_dp = True

    @refusals_in_one_line()
    def __init__(self, llm_args: Any = None) -> None:  # noqa: ANN401 TorchLlmArgs
        """Read what the engine serves.

        Raises:
            ConfigError: An option or the deployment cannot be used.
            UnsupportedEngineError: This TensorRT-LLM has never been checked.
        """
        setup = _set_up(llm_args)
        super().__init__(llm_args)
        self._barrier = FaultBarrier()
        self._mailbox = mailbox_of(llm_args)
        self._load_async = setup.deployment.cache.load_async
        self._events = FaultBarrier(without="events for routers")
        # Of several ranks, this is on the first, or on every one under attention data parallelism.
        self._half = SchedulerHalf(setup.deployment, self._mailbox, dp_rank=own_rank())
        self._offered: set[int] = set()
        """Numbers of requests that were offered something and have not ended."""

    @override
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        num_tokens = self._run(lambda: self._half.match(request, num_computed_tokens), int)
        if num_tokens:
            self._offered.add(request.request_id)
        return num_tokens, self._load_async and num_tokens > 0

    @override
    def update_state_after_alloc(self, request: Any, block_ids: list[int]) -> None:
        self._run(lambda: self._half.accept(request.request_id, block_ids), nothing)

    @override
    def build_connector_meta(self, scheduler_output: Any) -> ExchangeOrders:
        orders = self._run(lambda: self._half.build_orders(scheduler_output), self._no_orders)
        is_off = bool(self._barrier.reason)
        self._events.run(self._half.take_back if is_off else self._half.publish, nothing)
        return orders

    @override
    def request_finished(self, request: Any, cache_block_ids: list[int]) -> bool:
        """Keep the pages while a load writes to them; saves are done with them after their step."""
        number = request.request_id
        was_offered = number in self._offered
        self._offered.discard(number)
        return self._run(lambda: self._half.finish(number), lambda: was_offered)

    def request_reset(self, request: Any) -> None:  # noqa: ANN401 LlmRequest
        """Forget a request whose pages were taken away; it is matched again. For newer engines."""
        self._run(lambda: self._half.finish(request.request_id), lambda: False)

    def cancel_load(self, request: Any, start: int, end: int) -> None:  # noqa: ANN401 LlmRequest
        """Take tokens [start, end) off an offer. For newer engines."""
        self._run(lambda: self._half.shorten(request.request_id, range(start, end)), nothing)

    def shutdown(self) -> None:
        """Close what is open to routers. The engine never calls this; it ends its processes."""
        self._events.run(self._half.close, nothing)

    def _run(self, hook: Callable[[], T], instead: Callable[[], T]) -> T:
        if self._mailbox.refusal:
            self._barrier.switch_off(self._mailbox.refusal)
        return self._barrier.run(hook, instead)

    def _no_orders(self) -> ExchangeOrders:
        self._half.require_planned()
        return ExchangeOrders()


class FlexKVWorker(KvCacheConnectorWorker):
    """FlexKV behind TensorRT-LLM, on every rank.

    Thread: that of the engine's executor, but for the constructor.
    """

    supports_attention_dp = True

    @refusals_in_one_line()
    def __init__(self, llm_args: Any = None) -> None:  # noqa: ANN401 TorchLlmArgs
        """Read what the engine serves.

        Raises:
            ConfigError: An option or the deployment cannot be used.
            UnsupportedEngineError: This TensorRT-LLM has never been checked.
        """
        setup = _set_up(llm_args)
        super().__init__(llm_args)
        self._settings, self._deployment = setup.settings, setup.deployment
        self._barrier = FaultBarrier()
        self._mailbox = mailbox_of(llm_args)
        self._promises = Promises()
        self._answers = Answers(self._promises)
        self._half = WorkerHalf(setup.deployment, self._promises, setup.origin)
        self._unloaded = self._unsaved = ExchangeOrders()
        """Orders that are not carried out yet: the engine may hand in the same ones again."""

        gather = gather_reports if setup.deployment.num_ranks > 1 else _alone
        self._exchange = Exchange(setup.deployment.num_ranks, setup.deployment.owners, gather)

    @override
    def register_kv_caches(self, kv_cache_tensor: "torch.Tensor") -> None:
        self._register(slabs_of_pool, kv_cache_tensor)

    def register_kv_cache_layout(self, layout: Any) -> None:  # noqa: ANN401 KvCacheLayout
        """Take the pools of the second cache manager."""
        self._register(slabs_of_layout, layout)

    @override
    def bind_connector_meta(self, metadata: object) -> None:
        assert isinstance(metadata, ExchangeOrders)
        super().bind_connector_meta(metadata)
        never_computed = self._unsaved.saves
        self._barrier.run(lambda: self._half.skip(never_computed), nothing)
        self._unloaded = self._unsaved = metadata
        for load in metadata.loads:
            self._promises.make(load.request_id, load.page_ids)
        self._exchange.expect(metadata)

    @override
    def start_load_kv(self, stream: "torch.cuda.Stream") -> None:
        orders, self._unloaded = self._unloaded, ExchangeOrders()
        is_late = self._deployment.cache.load_async
        self._barrier.run(
            lambda: self._load(orders), nothing if is_late else self._answers.require_loaded
        )

    @override
    def wait_for_layer_load(self, layer_idx: int, stream: "torch.cuda.Stream") -> None:
        """Do nothing: loads of a synchronous step are complete before its forward pass."""

    @override
    def save_kv_layer(self, layer_idx: int, stream: "torch.cuda.Stream") -> None:
        """Do nothing: blocks are saved for all layers at once, after the forward pass."""

    @override
    def wait_for_save(self, stream: "torch.cuda.Stream") -> None:
        orders, self._unsaved = self._unsaved, ExchangeOrders()
        self._barrier.run(lambda: self._half.save(orders), nothing)

    @override
    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        self._answers.ask(started_loading_req_ids, finished_gen_req_ids)
        self._barrier.run(lambda: self._half.collect(), nothing)
        reports = self._exchange.all_reports(self._report)
        if stop := next((report for report in reports if isinstance(report, StopReport)), None):
            msg = f"rank {stop.rank} cannot fill pages that the engine counts on: {stop.refusal}"
            raise BrokenPromiseError(msg)  # on every rank: the others would wait for this one
        self._mailbox.post(reports)
        return self._answers.answer()

    def shutdown(self) -> None:
        """Free everything. The engine never calls this; it ends its processes."""
        self._barrier.run(self._half.session.shutdown, nothing)

    @refusals_in_one_line()
    def _register(self, cut: "Callable[..., list[torch.Tensor]]", cache: object) -> None:
        """Open this rank's tiers. All ranks start or none does: a rank waits for all others."""
        report = self._attempt(lambda: self._open(cut, cache))
        if report.refusal == _NO_GPU:
            return  # on every rank, so none waits for an exchange
        reports = self._introduce(report)
        self._mailbox.post(reports)
        if self._deployment.borrowers:
            self._mailbox.post(self._introduce(self._attempt(lambda: self._half.attach(reports))))

    def _introduce(self, report: RankReport) -> list[RankReport]:
        """Return what every rank reports.

        Raises:
            ConfigError: One of them cannot start.
        """
        reports = self._exchange.introduce(report)
        if refusal := next((report.refusal for report in reports if report.refusal), ""):
            raise ConfigError(refusal)
        return reports

    def _attempt(self, start: Callable[[], RankReport]) -> RankReport:
        """Return what `start` has to report, or why it could not."""

        def attempt() -> RankReport:
            try:
                return start()
            except FlexKVError as error:
                return RankReport(rank=self._deployment.rank, refusal=str(error))

        return self._barrier.run(attempt, self._refuse)

    def _open(self, cut: "Callable[..., list[torch.Tensor]]", cache: object) -> RankReport:
        deployment, num_planes = self._deployment, self._settings.num_planes
        slabs = cut(cache, deployment.page_shape, deployment.num_layers, num_planes)
        if are_on_gpu(slabs) and not deployment.cache.enable_gpu:
            self._barrier.switch_off(_NO_GPU)
            return self._refuse()
        return self._half.open(slabs, page_pool_of(slabs, num_planes))

    def _load(self, orders: ExchangeOrders) -> None:
        self._half.load(orders)
        self._half.collect()
        if not self._deployment.cache.load_async:
            self._answers.require_loaded()

    def _report(self) -> RankReport:
        return self._barrier.run(self._half.take_report, self._refuse)

    def _refuse(self) -> RankReport:
        kind = StopReport if self._promises.open else RankReport
        return kind(rank=self._deployment.rank, refusal=self._barrier.reason)
