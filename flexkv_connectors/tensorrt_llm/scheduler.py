"""The scheduler half: translates what TensorRT-LLM asks and schedules into calls of a session."""

import logging
import time
from collections.abc import Iterator
from typing import Any

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.event_publisher import EventPublisher
from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.orders import Load
from flexkv_connectors.session.scheduler import SchedulerSession
from flexkv_connectors.tensorrt_llm.exchange import ExchangeOrders
from flexkv_connectors.tensorrt_llm.mailbox import Mailbox
from flexkv_connectors.tensorrt_llm.requests import (
    TrtllmRequest,
    chain_of,
    may_skip,
    page_names_of,
)
from flexkv_core.block.types import RequestId
from flexkv_core.errors import BrokenPromiseError
from flexkv_core.metrics import Counters

__all__ = ["SchedulerHalf"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
"""The engine has no metrics of connectors: what was counted goes to the log this often."""


class SchedulerHalf:
    """Answers the engine's scheduler. Nothing blocks. Thread: that of the engine's executor."""

    def __init__(self, deployment: Deployment, mailbox: Mailbox, dp_rank: int = 0) -> None:
        """Begin before there is a pool.

        Args:
            deployment: The engine's shape.
            mailbox: Where the workers' reports arrive.
            dp_rank: Which of the ranks that schedule for themselves this is.

        Raises:
            ConfigError: Events cannot be published as the options say.
        """
        counters, options = Counters(), deployment.cache.events
        self._announcer = None if options is None else Announcer()
        self._publisher = None if options is None else EventPublisher(options, dp_rank, counters)
        self.session: SchedulerSession[TrtllmRequest] = SchedulerSession(
            deployment, counters, self._announcer
        )
        self._deployment = deployment
        self._mailbox = mailbox
        self._offered: dict[RequestId, TrtllmRequest] = {}
        """Requests whose load is promised and not planned."""

        self._named: set[RequestId] = set()
        """Requests that the engine has named in this interval."""

        self._interval_s = time.monotonic()

    def match(self, request: Any, num_local_tokens: int) -> int:  # noqa: ANN401 LlmRequest
        """Return how many tokens after the engine's own hit are offered, in whole pages.

        The engine asks once for each allocation. It does not wait for blocks on SSD: they are
        fetched for the next request that asks.
        """
        self.handle_reports()
        state = self._begin(request)
        if num_local_tokens % self._deployment.page_tokens or not may_skip(request):
            return 0
        self.session.fetch(state)
        num_tokens = self.session.offer(state, num_local_tokens)
        if num_tokens:
            self._offered[state.request_id] = state
        return num_tokens

    def accept(self, number: int, page_ids: list[int]) -> None:
        """Note the pages of a request that has just got them."""
        if state := self.session.states.get(_id_of(number)):
            state.page_ids = list(page_ids)

    def shorten(self, number: int, dropped: range) -> None:
        """Take tokens off the start or the end of an offer: the engine has them, or no room.

        Pages that it still needs in part stay whole.
        """
        state = self._offered.get(_id_of(number))
        if state is None:
            return
        start, stop = state.offer.start, state.offer.stop
        if dropped.start <= start:
            start = max(start, dropped.stop)
        else:
            stop = min(stop, dropped.start)
        page_tokens = self._deployment.page_tokens
        state.offer = range(
            start // page_tokens * page_tokens, -(-stop // page_tokens) * page_tokens
        )

    def build_orders(self, output: Any) -> ExchangeOrders:  # noqa: ANN401 SchedulerOutput
        """Plan this step's saves, and the loads that were promised.

        Raises:
            BrokenPromiseError: A load that the engine waits for cannot be planned.
        """
        self.handle_reports()
        self.session.begin_orders()
        computed = list(self._computed_by(output))
        if time.monotonic() - self._interval_s > _INTERVAL_S:
            self._end_interval()
        placed = [state for state in self._offered.values() if state.page_ids]
        saves = [self.session.plan_save(state, num_tokens) for state, num_tokens in computed]
        return ExchangeOrders(
            saves=[plan for plan in saves if plan is not None],
            ssd=self.session.take_ssd_orders(),
            wants_reports=self.session.ssd is not None and self.session.ssd.has_work,
            # Last: if anything fails before, `require_planned` still sees these offers as open.
            loads=[self._plan_load(state) for state in placed],
        )

    def publish(self) -> None:
        """Tell routers what has become findable or has left since the last call."""
        if self._announcer is not None and self._publisher is not None:
            self._publisher.publish(self._announcer.take())

    def take_back(self) -> None:
        """Let no router send requests to a cache that is off."""
        if self._announcer is not None and self._publisher is not None:
            self._publisher.publish(self._announcer.take_back())

    def close(self) -> None:
        """Publish nothing more."""
        if self._publisher is not None:
            self._publisher.close()

    def require_planned(self) -> None:
        """Stop the engine if it counts on a load that was never ordered.

        Raises:
            BrokenPromiseError: It does.
        """
        if self._offered:
            msg = f"loads of requests {sorted(self._offered)} were promised and cannot be ordered"
            raise BrokenPromiseError(msg)

    def finish(self, number: int) -> bool:
        """Forget a request; return whether its pages are still being written to."""
        state = self.session.states.get(_id_of(number))
        if state is None:
            return False
        self._offered.pop(state.request_id, None)
        self.session.end(state)
        return state.is_loading

    def handle_reports(self) -> None:
        """Take in what the workers have reported."""
        self.session.handle_reports(self._mailbox.take())

    def _begin(self, request: Any) -> TrtllmRequest:  # noqa: ANN401 LlmRequest
        """Start to follow a request, or start again if its pages were taken away."""
        self.finish(request.request_id)
        request_id = _id_of(request.request_id)
        chain = chain_of(request, self._deployment.block_tokens)
        page_names = page_names_of(request, self._deployment)
        tokens = request.get_tokens(0)
        state = TrtllmRequest(request_id, tokens, self._deployment, chain, page_names)
        self.session.states[request_id] = state
        self._named.add(request_id)
        return state

    def _end_interval(self) -> None:
        """Log what was counted, and forget requests that were not named for a whole interval.

        Some versions do not report that a request was cancelled. One that goes on is saved no more.
        """
        self._interval_s = time.monotonic()
        logger.info("cache.counts %s", self.session.take_counts())
        for request_id in self.session.states.keys() - self._named - self._offered.keys():
            if not self.session.states[request_id].is_loading:
                self.session.end(self.session.states[request_id])
        self._named.clear()

    def _plan_load(self, state: TrtllmRequest) -> Load:
        """Plan an offer as far as there are pages.

        Raises:
            BrokenPromiseError: There are pages, and they cannot be filled.
        """
        load = self.session.plan_load(state)
        if load.page_ids and load.plan is None:
            msg = f"blocks of request {state.request_id} were lost between their offer and load"
            raise BrokenPromiseError(msg)
        del self._offered[state.request_id]
        return load

    def _computed_by(self, output: Any) -> Iterator[tuple[TrtllmRequest, int]]:  # noqa: ANN401 SchedulerOutput
        """Yield requests that may have blocks to save, and their tokens computed after this step.

        The engine takes an offer off the position of a new request, so that position may be too
        low, and below 0 where the offer was not used: what it leaves out is saved with the next
        step.
        """
        for data in output.new_requests:
            if state := self.session.states.get(_id_of(data.request_id)):
                state.tokens, state.page_ids = list(data.new_tokens), list(_pages_of(data))
                state.is_described = True
                self._named.add(state.request_id)
                yield state, data.computed_position + data.num_scheduled_tokens
        for data in output.cached_requests:
            # Where the description goes on from an earlier allocation, it is not known which
            # tokens the new pages hold.
            state = self.session.states.get(_id_of(data.request_id))
            if state is not None and state.is_described:
                state.tokens += data.new_tokens
                state.page_ids += _pages_of(data)
                self._named.add(state.request_id)
                num_tokens = data.computed_position + data.num_scheduled_tokens
                if num_tokens >= state.next_save_tokens:
                    yield state, num_tokens


def _id_of(number: int) -> RequestId:
    """Return the request's name in the core."""
    return RequestId(str(number))


def _pages_of(data: Any) -> list[int]:  # noqa: ANN401 RequestData
    """Return the new pages of a request; the second cache manager lists them by layer group."""
    groups = getattr(data, "new_block_ids_by_layer_group", None)
    return list(groups[0] if groups else data.new_block_ids)
