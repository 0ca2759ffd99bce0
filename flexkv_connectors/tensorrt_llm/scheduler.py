"""The scheduler half: turns the engine's calls into verbs of `CacheManager`."""

import logging
import time
from collections.abc import Iterator
from typing import Any

from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.staging_room import StagingRoom
from flexkv_connectors.session.stores import open_stores, record_use
from flexkv_connectors.session.tier_use import TierUse
from flexkv_connectors.session.transfer_record import record_transfer
from flexkv_connectors.tensorrt_llm.mailbox import Mailbox
from flexkv_connectors.tensorrt_llm.messages import Load, StepOrders, StepReport
from flexkv_connectors.tensorrt_llm.requests import RequestState, chain_of, may_skip
from flexkv_core.block.types import JobId
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import Completion, JobKind
from flexkv_core.control.manager import CacheManager
from flexkv_core.errors import BrokenPromiseError
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TierOrders, TransferPlan

__all__ = ["SchedulerHalf"]

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
"""The engine has no metrics of connectors: what was counted goes to the log this often."""


class SchedulerHalf:
    """Decides for one engine what is loaded and saved.

    Thread: that of the engine's executor. Nothing blocks. A request already asked about costs O(1)
    a step, a new block O(blocks of its request).
    """

    def __init__(self, deployment: Deployment, mailbox: Mailbox) -> None:
        self._deployment = deployment
        self._mailbox = mailbox
        self._counters = Counters()
        self._staging = StagingRoom(self._counters)
        self._manager: CacheManager | None = None
        self._ssd: LowerTier | None = None
        self._states: dict[int, RequestState] = {}
        self._offered: dict[int, RequestState] = {}
        """Requests whose load is promised and not planned."""

        self._named: set[int] = set()
        """Requests that the engine has named in this interval."""

        self._interval_s = time.monotonic()
        self._loading: dict[JobId, RequestState] = {}
        self._saving: dict[JobId, RequestState] = {}

    @property
    def manager(self) -> CacheManager | None:
        """The control plane; None until the workers have opened the host tier."""
        return self._manager

    def match(self, request: Any, num_local_tokens: int) -> int:  # noqa: ANN401 LlmRequest
        """Return how many tokens beyond the engine's own hit are offered; whole pages.

        The engine asks once for each allocation. One token at least is left for it to compute. What
        is on SSD is not waited for: the question starts its way to host memory, for the next one.
        """
        self.digest()
        state = self._begin(request)
        if (
            self._manager is None
            or num_local_tokens % self._deployment.page_tokens
            or not may_skip(request)
        ):
            return 0
        keys = state.keys()
        if (use := self._use_of_ssd(state)) is not None:
            use.waits(keys, time.monotonic(), None)
        state.lease = self._manager.match(state.request_id, keys)
        num_tokens = self._usable_tokens(state) - num_local_tokens
        if num_tokens < max(self._deployment.cache.min_load_tokens, 1):
            self._let_go(state)
            return 0
        state.offer = range(num_local_tokens, num_local_tokens + num_tokens)
        self._offered[state.id] = state
        return num_tokens

    def accept(self, number: int, page_ids: list[int]) -> None:
        """Note the pages of a request that has just got them."""
        if state := self._states.get(number):
            state.page_ids = list(page_ids)

    def shorten(self, number: int, dropped: range) -> None:
        """Take tokens off the begin or the end of an offer: the engine has them, or no room.

        Pages that it still counts on in part stay whole.
        """
        state = self._offered.get(number)
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

    def build_orders(self, output: Any) -> StepOrders:  # noqa: ANN401 SchedulerOutput
        """Decide this step's saves and plan what was promised.

        Raises:
            BrokenPromiseError: A load that the engine waits for cannot be planned.
        """
        self.digest()
        computed = list(self._scheduled(output))
        if time.monotonic() - self._interval_s > _INTERVAL_S:
            self._end_interval()
        placed = [state for state in self._offered.values() if state.page_ids]
        saves = [self._plan_save(state, num_tokens) for state, num_tokens in computed]
        return StepOrders(
            saves=[plan for plan in saves if plan is not None],
            ssd=self._order_copies(),
            listens=self._ssd is not None and self._ssd.has_work,
            # The last, so that offers stay open, and are seen to be, whatever fails before.
            loads=[self._plan_load(state) for state in placed],
        )

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
        state = self._states.pop(number, None)
        if state is None:
            return False
        self._end(state)
        return state.is_loading

    def digest(self) -> None:
        """Take in what the workers have reported."""
        reports = self._mailbox.take()
        if self._manager is None and reports:
            self._open(reports)
        self._staging.note(told.staging for told in reports if told.staging is not None)
        for report in reports:
            for told in report.tiers:
                if self._ssd is not None:
                    self._ssd.digest(told)
            for result in report.results:
                if self._manager is not None and (ended := self._manager.complete(result)):
                    self._conclude(ended)

    def _open(self, reports: list[StepReport]) -> None:
        """Begin to cache: every owner has told what it has, together with all others."""
        capacities = [told.capacity_blocks for report in reports for told in report.tiers]
        num_host_blocks = min(report.pool.num_slots for report in reports if report.pool)
        self._manager, self._ssd = open_stores(
            self._deployment, num_host_blocks, min(capacities, default=0), self._counters, None
        )

    def _begin(self, request: Any) -> RequestState:  # noqa: ANN401 LlmRequest
        """Follow a request from here on; after its pages were taken away, from anew."""
        number = int(request.request_id)
        if (before := self._states.get(number)) is not None:
            self._end(before)
        chain = chain_of(request, self._deployment.block_tokens)
        state = RequestState(number, request.get_tokens(0), chain)
        self._states[number] = state
        self._named.add(number)
        return state

    def _end_interval(self) -> None:
        """Log what was counted, and forget requests that were not named for a whole interval.

        Some versions do not tell that a request was cancelled. One that goes on is saved no more.
        """
        self._interval_s = time.monotonic()
        logger.info("cache.counts %s", self.take_counts())
        for number in self._states.keys() - self._named - self._offered.keys():
            if not self._states[number].is_loading:
                self.finish(number)
        self._named.clear()

    def _end(self, state: RequestState) -> None:
        self._offered.pop(state.id, None)
        self._let_go(state)
        if state.ssd_use is not None:
            state.ssd_use.end()

    def _usable_tokens(self, state: RequestState) -> int:
        """Return the tokens of the lease that the engine may skip: it computes one at least."""
        if state.lease is None:
            return 0
        page_tokens = self._deployment.page_tokens
        usable = state.lease.num_blocks * self._deployment.block_tokens
        return min(usable, (len(state.tokens) - 1) // page_tokens * page_tokens)

    def _let_go(self, state: RequestState) -> None:
        if state.lease is not None and self._manager is not None:
            self._manager.release(state.lease)
        state.lease = None

    def _use_of_ssd(self, state: RequestState) -> TierUse | None:
        if state.ssd_use is None and self._manager is not None and self._ssd is not None:
            keys = state.keys()
            num_host_blocks = self._manager.lookup(keys, tier="host").num_ready
            state.ssd_use = TierUse(self._ssd, state.request_id, keys, num_host_blocks)
        return state.ssd_use

    def _order_copies(self) -> TierOrders | None:
        if self._ssd is None:
            return None
        orders = self._ssd.take_orders(time.monotonic())
        return None if orders == TierOrders() else orders

    def _plan_load(self, state: RequestState) -> Load:
        """Plan the offer as far as there are pages."""
        page_tokens, block_tokens = self._deployment.page_tokens, self._deployment.block_tokens
        pages = state.pages_until(state.offer.stop, page_tokens)[state.offer.start // page_tokens :]
        end = state.offer.start + len(pages) * page_tokens
        lease, state.lease = state.lease, None
        assert lease is not None, "an offer stands on a lease"
        assert self._manager is not None, "an offer came from it"
        if not pages:
            self._manager.release(lease)
            del self._offered[state.id]
            return Load(state.id, None)
        first_block, offset = divmod(state.offer.start, block_tokens)
        plan = self._manager.plan_get(
            lease,
            EnginePages(pages, offset // page_tokens),
            first_block=first_block,
            num_blocks=-(-end // block_tokens) - first_block,
        )
        if plan is None:
            self._manager.release(lease)
            msg = f"blocks of request {state.id} were lost between their offer and their load"
            raise BrokenPromiseError(msg)
        del self._offered[state.id]
        state.is_loading = True
        self._loading[plan.job_id] = state
        return Load(state.id, plan)

    def _plan_save(self, state: RequestState, num_computed: int) -> TransferPlan | None:
        """Plan the full blocks among the first `num_computed` tokens that nobody has saved yet.

        Where they are staged in device memory, what finds no place there is tried in a later step.
        """
        per_block = self._deployment.pages_per_block
        num_tokens = max(0, min(num_computed, len(state.tokens)))
        num_pages = len(state.pages_until(num_tokens, self._deployment.page_tokens))
        keys = state.keys()[: num_pages // per_block]
        manager = self._manager
        if manager is None or not state.may_save or len(keys) <= state.num_tried_blocks:
            return None
        if (use := self._use_of_ssd(state)) is not None:
            use.touch(state.keys())
        state.num_tried_blocks = self._staging.clip(
            len(keys), lambda: manager.lookup(keys, tier="host").num_known
        )
        reservation = manager.reserve(state.request_id, keys[: state.num_tried_blocks])
        if isinstance(reservation, Refusal):
            return None
        first = reservation.first_block * per_block
        pages = state.page_ids[first : first + reservation.num_blocks * per_block]
        plan = manager.plan_put(reservation, EnginePages(pages))
        assert plan is not None, "nothing happens between a reservation and its plan"
        self._staging.take(plan.job_id, plan.num_blocks)
        self._saving[plan.job_id] = state
        return plan

    def _scheduled(self, output: Any) -> Iterator[tuple[RequestState, int]]:  # noqa: ANN401 SchedulerOutput
        """Yield requests and the tokens that are computed once this step is done.

        The engine takes an offer off the position of a new request, so it may name fewer than are,
        below 0 where it did not use the offer: the blocks between are saved with the next step.
        """
        for data in output.new_requests:
            if state := self._states.get(data.request_id):
                state.tokens, state.page_ids = list(data.new_tokens), list(_pages_of(data))
                state.is_told = True
                self._named.add(state.id)
                yield state, data.computed_position + data.num_scheduled_tokens
        for data in output.cached_requests:
            # Told on from an allocation before this one, new pages are nobody knows which.
            if (state := self._states.get(data.request_id)) and state.is_told:
                state.tokens += data.new_tokens
                state.page_ids += _pages_of(data)
                self._named.add(state.id)
                yield state, data.computed_position + data.num_scheduled_tokens

    def _conclude(self, ended: Completion) -> None:
        """Count an ended transfer, and see what it makes possible."""
        if ended.kind is JobKind.COPY:
            if self._ssd is not None:
                self._ssd.conclude(ended, time.monotonic())
            return
        record_transfer(ended, self._counters)
        if ended.kind is JobKind.GET:
            self._loading.pop(ended.job_id).is_loading = False
        else:
            self._conclude_save(ended)

    def _conclude_save(self, ended: Completion) -> None:
        """A request whose save failed does not try again; else its blocks go on to SSD."""
        self._staging.give_back(ended.job_id)
        state = self._saving.pop(ended.job_id)
        state.may_save = state.may_save and ended.status is Status.OK
        if state.ssd_use is not None:
            state.ssd_use.offer(state.keys())

    def take_counts(self) -> dict[str, float]:
        """Return what has been counted since the last call."""
        if self._manager is not None:
            record_use(self._manager, self._ssd, self._counters)
        return self._counters.drain()


def _pages_of(data: Any) -> list[int]:  # noqa: ANN401 RequestData
    """Return the new pages of a request; the second cache manager lists them by layer group."""
    groups = getattr(data, "new_block_ids_by_layer_group", None)
    return list(groups[0] if groups else data.new_block_ids)
