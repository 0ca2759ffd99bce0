"""The scheduler half: translates what vLLM's scheduler asks and does into calls of a session."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.session.orders import Load
from flexkv_connectors.session.scheduler import SchedulerSession
from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_connectors.vllm.events import events_of
from flexkv_connectors.vllm.metadata import VllmOrders, VllmReports
from flexkv_connectors.vllm.prefill_speed import PrefillSpeed
from flexkv_connectors.vllm.report_timeout import ReportTimeout
from flexkv_connectors.vllm.requests import VllmRequest, computed_by
from flexkv_connectors.vllm.switches import SwitchReader
from flexkv_core.metrics import Counters
from flexkv_core.plan import Status, TransferPlan, TransferResult

if TYPE_CHECKING:
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["SchedulerHalf"]


class SchedulerHalf:
    """Answers vLLM's scheduler. Nothing blocks. Thread: the scheduler's."""

    def __init__(self, deployment: VllmDeployment, counters: Counters, adapters: Adapters) -> None:
        self._deployment = deployment
        self._counters = counters
        self._adapters = adapters
        self._switches = SwitchReader(counters)
        self._announcer = Announcer() if deployment.publishes_events else None
        self.session: SchedulerSession[VllmRequest] = SchedulerSession(
            deployment, counters, self._announcer
        )
        self._late_saves: list[TransferPlan] = []
        """Of requests that have ended since the last orders."""

        self._unsaved: list[tuple[VllmRequest, int]] = []
        """Requests that have ended since then, with their computed tokens, while there was no pool:
        the ranks' first report, which opens it, comes after the requests that end in its step."""

        self._timeout = ReportTimeout(limit_s=30.0)
        self._opening = ReportTimeout(limit_s=10.0)
        """Not restarted: the first request is to find what is on SSD if the model is known soon,
        and an engine does not step on and on for one that is hashed for minutes."""

        self._speed = PrefillSpeed()

    def bar_saves(self, request: "Request") -> None:
        """Save nothing of a request."""
        self._state(request).may_save = False

    def match(self, request: "Request", num_local_tokens: int) -> int | None:
        """Return how many tokens after vLLM's own hit are offered, in whole pages.

        None makes vLLM ask again in a later step: more is on its way from SSD.
        """
        state = self._state(request)
        if not (state.check_adapter(num_local_tokens) and state.may_load and state.has_keys):
            self.session.withdraw(state)
            return 0
        if state.lease is None:
            block_tokens, now_s = self._deployment.block_tokens, time.monotonic()
            if self.session.fetch(state, self._speed.seconds_for(block_tokens, now_s)):
                return None
        return self.session.offer(state, num_local_tokens)

    def accept(self, request: "Request", page_ids: list[int], num_tokens: int) -> Load | None:
        """Plan to load the first `num_tokens` tokens of the offer; 0 withdraws it."""
        state = self._state(request)
        state.page_ids = page_ids
        if num_tokens == 0:
            self.session.withdraw(state)
            return None
        state.offer = range(state.offer.start, state.offer.start + num_tokens)
        state.num_promised_tokens = num_tokens
        return self.session.plan_load(state)

    def decline(self, request: "Request", page_ids: list[int], num_tokens: int) -> Load | None:
        """Return the load that `accept` could not plan, so that it is reported as failed."""
        state = self.session.states.get(request.request_id)
        if state is None or num_tokens == 0:
            return None
        state.page_ids = page_ids
        state.offer = range(state.offer.start, state.offer.start + num_tokens)
        return Load(state.request_id, state.offered_pages(), None)

    def build_orders(self, scheduler_output: "SchedulerOutput") -> VllmOrders:
        """Plan this step's saves, and return them with all that the workers have to do."""
        self._adapters.look_again()
        self.session.begin_orders()
        self._unsaved.clear()  # from this step on their pages are used again
        late_saves, self._late_saves = self._late_saves, []
        self._speed.begin_step(scheduler_output.total_num_scheduled_tokens, time.monotonic())
        computed = computed_by(scheduler_output, self.session.states)
        saves = [plan for state, num in computed if (plan := self.session.plan_save(state, num))]
        return VllmOrders(
            saves=saves,
            late_saves=late_saves,
            ssd=self.session.take_ssd_orders(),
            pools=self.session.pools.to_attach,
        )

    def finish(self, request: "Request") -> None:
        """Plan the last save of a request that ends, and forget it; vLLM may reuse its pages."""
        state = self.session.states.get(request.request_id)
        if state is None:
            return
        state.release_adapter()
        self.session.end(state)
        if state.num_promised_tokens:
            return  # pages that wait for a load hold nothing to save
        # The token sampled last was never fed back: it has no KV.
        num_known = max(request.num_prompt_tokens, request.num_tokens - 1)
        self._unsaved.append((state, min(request.num_computed_tokens, num_known)))
        self._save_ended()

    def handle_reports(self, reports: VllmReports) -> None:
        """Take in what the workers report."""
        self._adapters.look_again()
        self._timeout.restart()
        for report in reports.reports:
            report.results = [self._reviewed(result) for result in report.results]
        self.session.handle_reports(reports.reports)
        self._save_ended()

    def end_step(self) -> None:
        """Note that a step has ended."""
        self._speed.end_step(time.monotonic())

    def num_ssd_tokens(self, request: "Request", num_loaded_tokens: int) -> int:
        """Return how many of the tokens that are loaded were on SSD when the request came."""
        state = self.session.states.get(request.request_id)
        if state is None:
            return 0
        start = state.offer.start
        return state.num_ssd_tokens(range(start, start + num_loaded_tokens))

    @property
    def has_pending_work(self) -> bool:
        """Whether an idle engine has to keep stepping, so that the workers' reports arrive."""
        waiting = bool(self._late_saves) or self.session.is_waiting
        is_opening = self._opening.allows(waiting=self.session.is_opening)
        return self._timeout.allows(waiting=waiting) or is_opening

    def take_events(self) -> "Iterable[KVCacheEvent]":
        """Return events, in vLLM's form, about blocks that became findable or left."""
        return () if self._announcer is None else events_of(self._announcer.take())

    def take_back_events(self) -> "Iterable[KVCacheEvent]":
        """Return events, in vLLM's form, that take back all that was told."""
        return () if self._announcer is None else events_of(self._announcer.take_back())

    def forget_events(self) -> None:
        """Note that vLLM has told routers to forget all that this engine has."""
        if self._announcer is not None:
            self._announcer.forget()

    def _state(self, request: "Request") -> VllmRequest:
        state = self.session.states.get(request.request_id)
        if state is None:
            switches = self._switches.read(request.kv_transfer_params)
            state = VllmRequest(request, self._adapters, self._deployment, switches)
            self.session.states[state.request_id] = state
        return state

    def _save_ended(self) -> None:
        """Plan the last saves of requests that have ended, if there is a pool by now."""
        if self.session.manager is None:
            return
        ended, self._unsaved = self._unsaved, []
        for state, num_computed in ended:
            if plan := self.session.plan_save(state, num_computed):
                self._late_saves.append(plan)
            num_lost = state.num_savable_blocks(num_computed) - state.num_tried_blocks
            self._counters.add("save_no_room_blocks", max(0, num_lost))

    def _reviewed(self, result: TransferResult) -> TransferResult:
        """Return `result`, or a failure if the adapter has changed under what it has saved."""
        state = self.session.saving.get(result.job_id)
        if state is None or state.check_adapter():
            return result
        return msgspec.structs.replace(result, status=Status.ERROR, num_blocks=0)
