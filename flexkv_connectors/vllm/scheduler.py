"""The scheduler half: turns the engine's calls into verbs of `CacheManager`."""

import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from flexkv_connectors.session.staging_room import StagingRoom
from flexkv_connectors.session.stores import open_stores, record_use
from flexkv_connectors.session.tier_use import TierUse
from flexkv_connectors.session.transfer_record import record_transfer
from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.deployment import Deployment
from flexkv_connectors.vllm.events import EventFeed
from flexkv_connectors.vllm.metadata import Load, StepOrders, StepReport
from flexkv_connectors.vllm.patience import Patience
from flexkv_connectors.vllm.prefill_speed import PrefillSpeed
from flexkv_connectors.vllm.replicas import ReplicaPools
from flexkv_connectors.vllm.requests import RequestState, follow
from flexkv_connectors.vllm.support import why_not_skip
from flexkv_connectors.vllm.switches import SwitchReader
from flexkv_core.block.types import JobId
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import Completion, JobKind
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import Counters
from flexkv_core.plan import (
    EnginePages,
    Status,
    TierOrders,
    TierReport,
    TransferPlan,
    TransferResult,
)

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["SchedulerHalf"]

logger = logging.getLogger(__name__)


class SchedulerHalf:
    """Decides for one engine what is loaded and saved.

    Thread: the scheduler's. Nothing blocks. A request already asked about costs O(1) a step, a
    new block O(blocks of its request).
    """

    def __init__(
        self, deployment: Deployment, counters: Counters, adapters: Adapters, *, uses_ssd: bool
    ) -> None:
        self._deployment = deployment
        self._uses_ssd = uses_ssd
        self._counters = counters
        self._adapters = adapters
        self._switches = SwitchReader(counters)
        self._events = EventFeed(
            enabled=deployment.publishes_events, block_tokens=deployment.block_tokens
        )
        self._states: dict[str, RequestState] = {}
        self._ended: list[RequestState] = []
        """Requests that have ended since the last orders."""

        self._replicas = ReplicaPools(deployment.owners, deployment.replicas)
        self._patience = Patience(limit_s=30.0)
        self._staging = StagingRoom(counters)
        self._orders = StepOrders()
        self._manager: CacheManager | None = None
        self._ssd: LowerTier | None = None
        self._is_reset = False
        self._speed = PrefillSpeed()
        self._told: list[TierReport] = []
        """What owners have said of the SSD tier, until it is opened."""

        self._saving: dict[JobId, RequestState] = {}
        """Whose blocks a plan saves, to look at them again when it has ended."""

    @property
    def manager(self) -> CacheManager | None:
        """The control plane; None until the workers have opened the host tier."""
        return self._manager

    def match(self, request: "Request", num_local_tokens: int) -> int | None:
        """Return how many tokens beyond the engine's own hit are offered; whole pages.

        None asks to be asked again: more is on its way from SSD.
        """
        state = self._state(request)
        if not (state.is_sound(num_local_tokens) and state.may_load and state.has_keys):
            self._let_go(state)
            return 0
        if self._manager is None or not self._replicas.ready:
            return 0
        if state.lease is None:
            if self._waits(state):
                return None
            state.lease = self._manager.match(state.request_id, state.keys())
        offer = state.usable_tokens - num_local_tokens
        if offer < max(self._deployment.cache.min_load_tokens, 1):
            self._let_go(state)
            return 0
        state.num_local_tokens = num_local_tokens
        return offer

    def accept(self, request: "Request", page_ids: list[int], num_tokens: int) -> Load | None:
        """Plan the load of the offer's first `num_tokens` tokens; 0 drops the offer."""
        state = self._state(request)
        state.page_ids = page_ids
        if num_tokens == 0:
            self._let_go(state)
            return None
        state.num_loading_tokens = num_tokens
        pages = state.pages_between(state.num_local_tokens + num_tokens)
        plan = self._plan_load(state, pages, state.num_local_tokens + num_tokens)
        return Load(request.request_id, pages, plan)

    def decline(self, request: "Request", page_ids: list[int], num_tokens: int) -> Load | None:
        """Return the promise that `accept` could not keep, so that it is reported as failed."""
        state = self._states.get(request.request_id)
        if state is None or num_tokens == 0:
            return None
        state.page_ids = page_ids
        pages = state.pages_between(state.num_local_tokens + num_tokens)
        return Load(request.request_id, pages, None)

    def build_orders(self, scheduler_output: "SchedulerOutput") -> StepOrders:
        """Decide this step's saves and hand out everything that waits for the workers."""
        self._adapters.look_again()
        orders, self._orders = self._orders, StepOrders()
        self._ended = []
        orders.pools = self._replicas.waiting_pools
        now_s = time.monotonic()
        self._speed.begin_step(scheduler_output.total_num_scheduled_tokens, now_s)
        for state, num_computed in follow(self._states, scheduler_output):
            if plan := self._plan_save(state, num_computed):
                orders.saves.append(plan)
        if self._ssd is not None:
            orders.ssd = self._order_copies(self._ssd, now_s)
        return orders

    def finish(self, request: "Request") -> None:
        """Save what an ending request still owes, and forget it; its pages may go at once."""
        state = self._states.pop(request.request_id, None)
        if state is None:
            return
        state.end()
        if self._manager is None:
            return
        self._ended.append(state)
        self._let_go(state)
        if state.ssd_use is not None:
            state.ssd_use.end()
        if state.num_loading_tokens:
            return
        # The token sampled last was never fed back: it has no KV.
        num_known = max(request.num_prompt_tokens, request.num_tokens - 1)
        num_computed = min(request.num_computed_tokens, num_known)
        if plan := self._plan_save(state, num_computed):
            self._orders.late_saves.append(plan)
        num_lost = state.num_savable_blocks(num_computed) - state.num_tried_blocks
        self._counters.add("save_no_room_blocks", max(0, num_lost))

    def digest(self, report: StepReport) -> None:
        """Take in what the workers report."""
        self._adapters.look_again()
        self._patience.reward()
        self._replicas.note(report.pools, report.attached)
        self._staging.note(report.staging.values())
        self._told += report.tiers
        if self._manager is None and self._replicas.num_slots is not None:
            self._open(self._replicas.num_slots)
        if self._manager is None:
            return
        told, self._told = self._told, []
        if self._ssd is not None:
            for tier_report in told:
                self._ssd.digest(tier_report)
        for result in report.results:
            if completion := self._manager.complete(self._reviewed(result)):
                self._conclude(completion)

    def distrust(self, failed_pages: Collection[int]) -> set[int]:
        """Drop the blocks that could not be loaded into `failed_pages`, and all behind them.

        What a step computes behind a synchronous load that fails is computed from rubbish. That is
        true for every request that shares the page, in whatever namespace of ours.

        Returns:
            The failed pages and those behind them in their requests.
        """
        rubbish = set(failed_pages)
        for state in (*self._states.values(), *self._ended):
            self._let_go(state)  # what waits for room was perhaps offered what is dropped now
            pages = enumerate(state.page_ids)
            position = next((at for at, page in pages if page in failed_pages), None)
            if position is not None:
                rubbish.update(state.page_ids[position:])
                self._drop_from(state, position // self._deployment.pages_per_block)
        return rubbish

    def reset(self) -> None:
        """Forget every block. What is being copied ends without becoming findable.

        The weights may be others from now on, so requests that have begun are not saved any more:
        part of their KV is of the old ones.
        """
        for state in self._states.values():
            self._let_go(state)
            state.may_save = state.may_save and not state.page_ids
        self._is_reset = True
        if self._manager is not None:
            self._manager.reset()
        if self._ssd is not None:
            self._ssd.reset()

    def end_step(self) -> None:
        """Note that a step has ended."""
        self._speed.end_step(time.monotonic())

    def num_ssd_tokens(self, request: "Request", num_loaded_tokens: int) -> int:
        """Return how many of the tokens that are loaded were on SSD when the request came."""
        state = self._states.get(request.request_id)
        if state is None or state.ssd_use is None:
            return 0
        num_host_tokens = state.ssd_use.num_host_blocks * self._deployment.block_tokens
        end = state.num_local_tokens + num_loaded_tokens
        return max(0, end - max(num_host_tokens, state.num_local_tokens))

    @property
    def has_pending_work(self) -> bool:
        """Whether an idle engine has to keep stepping for us to hear from the workers."""
        waiting = (
            self._manager is None
            or not self._replicas.ready
            or bool(self._orders.late_saves)
            or self._manager.num_in_flight > 0
            or (self._ssd is not None and self._ssd.has_work)
        )
        return self._patience.lasts(waiting=waiting)

    def take_events(self) -> Sequence[object]:
        """Return vLLM's own events about what became findable and what left."""
        return self._events.take()

    def take_counts(self) -> dict[str, float]:
        """Return what has been counted since the last call."""
        if self._manager is not None:
            record_use(self._manager, self._ssd, self._counters)
        return self._counters.drain()

    def _open(self, num_slots: int) -> None:
        """Begin to cache: every owner has told what it has."""
        num_ssd_blocks = min((told.capacity_blocks for told in self._told), default=0)
        if self._uses_ssd and not num_ssd_blocks:
            logger.warning("tier.off tier=ssd: a rank can keep no block there")
        self._manager, self._ssd = open_stores(
            self._deployment, num_slots, num_ssd_blocks, self._counters, self._events.log
        )
        if self._is_reset and self._ssd is not None:
            self._ssd.reset()  # what the workers have found is of the weights of before

    def _state(self, request: "Request") -> RequestState:
        state = self._states.get(request.request_id)
        if state is None:
            switches = self._switches.read(request.kv_transfer_params)
            state = RequestState(request, self._adapters, self._deployment, switches)
            state.may_load = state.may_load and why_not_skip(request) is None
            self._states[request.request_id] = state
            self._events.know(request)
        return state

    def _waits(self, state: RequestState) -> bool:
        """Return whether blocks of the request come from SSD, and are worth waiting for."""
        use = self._use_of_ssd(state)
        if use is None:
            return False
        now_s = time.monotonic()
        block_s = self._speed.seconds_for(self._deployment.block_tokens, now_s)
        return use.waits(state.keys(), now_s, block_s)

    def _use_of_ssd(self, state: RequestState) -> TierUse | None:
        if state.ssd_use is None and self._manager is not None and self._ssd is not None:
            keys = state.keys()
            num_host_blocks = self._manager.lookup(keys, tier="host").num_ready
            lasting = state.num_lasting_blocks
            state.ssd_use = TierUse(self._ssd, state.request_id, keys, num_host_blocks, lasting)
        return state.ssd_use

    def _order_copies(self, ssd: LowerTier, now_s: float) -> TierOrders | None:
        """Return what the workers have to do for the SSD tier, or None."""
        orders = ssd.take_orders(now_s)
        if self._manager is not None:
            for plan in orders.plans:
                self._events.expect(plan.job_id, self._manager.request_of(plan.job_id))
        return None if orders == TierOrders() else orders

    def _let_go(self, state: RequestState) -> None:
        if state.lease is not None and self._manager is not None:
            self._manager.release(state.lease)
        state.lease = None

    def _drop_from(self, state: RequestState, bad_block: int) -> None:
        state.num_tried_blocks = min(state.num_tried_blocks, bad_block)
        keys = state.keys()[: bad_block + 1]
        if self._manager is not None and len(keys) > bad_block:
            self._manager.drop_from(keys, tier="host")

    def _plan_load(self, state: RequestState, pages: list[int], end: int) -> TransferPlan | None:
        """Plan tokens [num_local_tokens, end); None if a reset has taken the lease's blocks."""
        lease, state.lease = state.lease, None
        if lease is None or self._manager is None:
            return None
        block_tokens = self._deployment.block_tokens
        first_block, offset = divmod(state.num_local_tokens, block_tokens)
        plan = self._manager.plan_get(
            lease,
            EnginePages(pages, offset // self._deployment.page_tokens),
            first_block=first_block,
            num_blocks=-(-end // block_tokens) - first_block,
        )
        if plan is None:
            self._manager.release(lease)
        return plan

    def _plan_save(self, state: RequestState, num_computed: int) -> TransferPlan | None:
        """Plan the full blocks among the first `num_computed` tokens that nobody has saved yet.

        Where they are staged in device memory, what finds no place there is tried in a later step.
        """
        num_blocks = state.num_savable_blocks(num_computed)
        manager = self._manager
        if manager is None or num_blocks <= state.num_tried_blocks or not state.is_sound():
            return None
        keys = state.keys()
        if (use := self._use_of_ssd(state)) is not None:
            use.touch(keys)
        num_blocks = self._staging.clip(
            num_blocks, lambda: manager.lookup(keys, tier="host").num_known
        )
        state.num_tried_blocks = num_blocks
        reservation = manager.reserve(state.request_id, keys[:num_blocks])
        if isinstance(reservation, Refusal):
            return None
        per_block = self._deployment.pages_per_block
        first = reservation.first_block * per_block
        pages = state.page_ids[first : first + reservation.num_blocks * per_block]
        plan = manager.plan_put(reservation, EnginePages(pages))
        assert plan is not None, "nothing happens between a reservation and its plan"
        self._staging.take(plan.job_id, plan.num_blocks)
        self._events.expect(plan.job_id, state.request_id)
        self._saving[plan.job_id] = state
        return plan

    def _reviewed(self, result: TransferResult) -> TransferResult:
        """Return `result`, or a failure where it is not known any more what was computed."""
        state = self._saving.get(result.job_id)
        if state is None or state.is_sound():
            return result
        return msgspec.structs.replace(result, status=Status.ERROR, num_blocks=0)

    def _conclude(self, completion: Completion) -> None:
        """Count an ended transfer, and see what it makes possible."""
        if completion.kind is JobKind.GET:
            self._conclude_load(completion)
        elif completion.kind is JobKind.PUT:
            self._conclude_save(completion)
        elif self._ssd is not None:
            self._ssd.conclude(completion, time.monotonic())

    def _conclude_load(self, completion: Completion) -> None:
        """A request whose load failed does not try again."""
        record_transfer(completion, self._counters)
        state = self._states.get(completion.request_id)
        if state is None:
            return
        if completion.status is not Status.OK:
            state.may_load = False
            return
        self._counters.add("load_tokens", state.num_loading_tokens)
        num_ssd_tokens = self.num_ssd_tokens(state.request, state.num_loading_tokens)
        self._counters.add("ssd_load_tokens", num_ssd_tokens)

    def _conclude_save(self, completion: Completion) -> None:
        """A request whose save failed does not try again; else its blocks go on to SSD."""
        record_transfer(completion, self._counters)
        self._counters.add("save_tokens", completion.num_published * self._deployment.block_tokens)
        state = self._states.get(completion.request_id)
        if state is not None and completion.status is not Status.OK:
            state.may_save = False
        self._staging.give_back(completion.job_id)
        saved = self._saving.pop(completion.job_id, None)
        if saved is not None and saved.ssd_use is not None:
            saved.ssd_use.offer(saved.keys())
