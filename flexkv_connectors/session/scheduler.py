"""The scheduler's side of a session: what is loaded and saved, in verbs of `CacheManager`."""

import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Generic, TypeVar

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.session.announcements import announce_found, expect_save
from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.lower_tier_request import LowerTierRequest
from flexkv_connectors.session.orders import Load, RankReport
from flexkv_connectors.session.rank_pools import RankPools
from flexkv_connectors.session.request import RequestState
from flexkv_connectors.session.staging_room import StagingRoom
from flexkv_connectors.session.tiers import Tiers, open_tiers
from flexkv_core.block.types import JobId, RequestId
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import Completion, JobKind
from flexkv_core.control.lease import Lease
from flexkv_core.control.manager import CacheManager
from flexkv_core.excerpt import clipped
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, Status, TierOrders, TierReport, TransferPlan

__all__ = ["SchedulerSession"]

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=RequestState)

_STEPS_IN_FLIGHT = 16
"""Engines order steps before earlier ones are over: one more, or as many as pipeline stages."""

_METRICS: Mapping[JobKind, tuple[str, str, str]] = {
    JobKind.GET: ("load_bytes", "load_seconds", "load_failed_blocks"),
    JobKind.PUT: ("save_bytes", "save_seconds", "save_failed_blocks"),
}


class SchedulerSession(Generic[S]):
    """Decides what is loaded and saved for the requests that an adapter asks about.

    Thread: the scheduler's. Nothing blocks. A request costs a comparison a step, see
    `RequestState.next_save_tokens`; a new block costs O(blocks of its request).
    """

    def __init__(
        self, deployment: Deployment, counters: Counters, announcer: Announcer | None = None
    ) -> None:
        """Begin without tiers; they open once every owner has reported its pool.

        Args:
            deployment: The engine's shape.
            counters: Where counts go.
            announcer: Who tells routers of blocks that become findable or leave, if they listen.
        """
        self.states: dict[RequestId, S] = {}
        """Requests that have not ended; an adapter adds them."""

        self.saving: dict[JobId, S] = {}
        """The request whose blocks a plan in flight saves."""

        self.pools = RankPools(deployment.owners, deployment.borrowers)
        self._deployment = deployment
        self._counters = counters
        self._announcer = announcer
        self._staging = StagingRoom(counters)
        self._tiers: Tiers | None = None
        self._is_reset = False
        self._ssd_reports: list[TierReport] = []
        """Reports of owners that the SSD tier has not taken in; it may not be open yet."""

        self._loading: dict[JobId, tuple[S, int, int]] = {}
        """The request whose pages a plan in flight fills, with how many tokens, and how many of
        them came from SSD."""

        self._ended: deque[list[S]] = deque([[]], maxlen=_STEPS_IN_FLIGHT)
        """Requests that have ended, by step, the latest first: their loads may still fail."""

    @property
    def manager(self) -> CacheManager | None:
        """The control plane; None until every owner has opened its pool."""
        return None if self._tiers is None else self._tiers.manager

    @property
    def ssd(self) -> LowerTier | None:
        """The tier below host memory, if there is one that is open."""
        return None if self._tiers is None else self._tiers.ssd

    @property
    def is_waiting(self) -> bool:
        """Whether a report is expected, or another step brings the SSD tier's work forward."""
        if (tiers := self._readable) is None:
            return True
        manager, ssd = tiers
        return manager.num_in_flight > 0 or (ssd is not None and ssd.can_proceed)

    @property
    def is_opening(self) -> bool:
        """Whether the SSD tier has not taken in all that its owners may still find."""
        return self.ssd is not None and self.ssd.is_restoring

    def fetch(self, state: S, block_compute_s: float | None = None) -> bool:
        """Start what SSD has of a request on its way to host memory.

        Args:
            state: The request.
            block_compute_s: Seconds that computing one block takes, None if that is unknown.

        Returns:
            Whether it is worth waiting for. Ask again until it is not.
        """
        self._note_use(state)
        lower = None if self._readable is None else self._lower(state)
        return lower is not None and lower.fetch(state.keys(), time.monotonic(), block_compute_s)

    def offer(self, state: S, num_local_tokens: int) -> int:
        """Offer what host memory has of a request; its blocks stay there until the load is planned.

        Args:
            state: The request.
            num_local_tokens: The engine's own prefix hit, in whole pages: the offer starts there.

        Returns:
            How many tokens are offered, in whole pages; 0 for none.
        """
        if (tiers := self._readable) is None:
            return 0
        self._note_use(state)
        if state.lease is None:
            state.lease = tiers.manager.match(state.request_id, state.keys())
        num_blocks = 0 if state.lease is None else state.lease.num_blocks
        usable = min(num_blocks * self._deployment.block_tokens, state.max_usable_tokens)
        num_tokens = usable - num_local_tokens
        if num_tokens < max(self._deployment.cache.min_load_tokens, 1):
            self.withdraw(state)
            return 0
        state.offer = range(num_local_tokens, usable)
        return num_tokens

    def withdraw(self, state: S) -> None:
        """Release the blocks of an offer, if there is one."""
        if state.lease is not None and self._tiers is not None:
            self._tiers.manager.release(state.lease)
        state.lease = None

    def plan_load(self, state: S) -> Load:
        """Plan to fill the pages of an offer, up to the first that is missing.

        Returns:
            A load, without a plan if there are no pages, or if a drop or a reset has removed
            blocks of the offer.
        """
        pages = state.offered_pages()
        plan = self._plan_get(state.lease, state.offer.start, pages) if state.lease else None
        if plan is None:
            self.withdraw(state)
            return Load(state.request_id, pages, None)
        state.lease = None
        state.is_loading = True
        self._counters.add("match_hit_blocks", plan.num_blocks)
        end = state.offer.start + len(pages) * self._deployment.page_tokens
        tokens = range(state.offer.start, end)
        self._loading[plan.job_id] = state, len(tokens), state.num_ssd_tokens(tokens)
        return Load(state.request_id, pages, plan)

    def plan_save(self, state: S, num_computed: int) -> TransferPlan | None:
        """Plan to save the full blocks of the first `num_computed` tokens that are not saved yet.

        Blocks that find no place in the staging memory of a device are tried in a later step.
        """
        num_blocks = state.num_savable_blocks(num_computed)
        if self._tiers is None or num_blocks <= state.num_tried_blocks:
            return None
        manager, keys = self._tiers.manager, state.keys()
        if (lower := self._lower(state)) is not None:
            lower.admit(keys)
        num_tried = self._staging.clip(
            min(num_blocks, len(keys)), lambda: manager.lookup(keys, tier="host").num_known
        )
        state.note_tried(num_tried)
        reservation = manager.reserve(state.request_id, keys, end=num_tried)
        if isinstance(reservation, Refusal):
            return None
        per_block = self._deployment.pages_per_block
        first = reservation.first_block * per_block
        pages = state.page_ids[first : first + reservation.num_blocks * per_block]
        plan = manager.plan_put(reservation, EnginePages(pages))
        assert plan is not None, "nothing happens between a reservation and its plan"
        if self._announcer is not None:
            blocks = range(reservation.first_block, reservation.end_block)
            expect_save(self._announcer, state, blocks, self._tiers, self._counters)
        self._staging.take(plan.job_id, plan.num_blocks)
        self.saving[plan.job_id] = state
        return plan

    def begin_orders(self) -> None:
        """Note that the orders of another step are made."""
        self._ended.appendleft([])

    def take_ssd_orders(self) -> TierOrders | None:
        """Return this step's orders for the SSD tier, or None if there are none."""
        if self.ssd is None:
            return None
        orders = self.ssd.take_orders(time.monotonic())
        return None if orders == TierOrders() else orders

    def end(self, state: S) -> None:
        """Forget a request that has ended; copies in flight for it go on."""
        self.states.pop(state.request_id, None)
        self._ended[0].append(state)
        self.withdraw(state)
        if state.lower is not None:
            state.lower.end()

    def handle_reports(self, reports: Iterable[RankReport]) -> None:
        """Take in reports of ranks; open the tiers once every owner has reported its pool.

        Pages that could not be filled come first (`drop_failed_pages`): what was computed from them
        would be published here.
        """
        reports = list(reports)
        for report in reports:
            self.pools.note(report)
        self._staging.note(report.staging for report in reports if report.staging is not None)
        self._ssd_reports += [report.ssd for report in reports if report.ssd is not None]
        if self._tiers is None and self.pools.num_slots is not None:
            self._tiers = self._open(self.pools.num_slots)
        if self._tiers is None:
            return
        ssd_reports, self._ssd_reports = self._ssd_reports, []
        if self._tiers.ssd is not None:
            for ssd_report in ssd_reports:
                self._tiers.ssd.handle_report(ssd_report)
        for report in reports:
            for result in report.results:
                if completion := self._tiers.manager.complete(result):
                    self._conclude(completion)

    def drop_failed_pages(self, failed_pages: Collection[int]) -> set[int]:
        """Drop the blocks that could not be loaded into `failed_pages`, and all after them.

        A step whose load fails has computed what follows from the wrong KV. That holds for every
        request that shares the page, in any namespace.

        Returns:
            The failed pages and those after them in their requests.
        """
        wrong_pages = set(failed_pages)
        for state in chain(self.states.values(), *self._ended):
            self.withdraw(state)  # a request that waits for room may have been offered such blocks
            pages = enumerate(state.page_ids)
            position = next((at for at, page in pages if page in failed_pages), None)
            if position is not None:
                wrong_pages.update(state.page_ids[position:])
                self._drop_from(state, position // self._deployment.pages_per_block)
        return wrong_pages

    def reset(self) -> None:
        """Forget every block; those of copies in flight do not become findable.

        The weights may have changed, so requests that have begun are not saved any more: part of
        their KV was computed with the old ones.
        """
        for state in chain(self.states.values(), *self._ended):
            self.withdraw(state)
            state.may_save = state.may_save and not state.page_ids
        self._is_reset = True
        if self._tiers is not None:
            self._tiers.manager.reset()
        if self.ssd is not None:
            self.ssd.reset()

    def take_counts(self) -> dict[str, float]:
        """Return what has been counted since the last call."""
        if self._tiers is not None:
            self._tiers.record_use(self._counters)
        return self._counters.drain()

    @property
    def _readable(self) -> Tiers | None:
        """The tiers, once every rank can read what its owner has written."""
        return self._tiers if self.pools.are_ready else None

    def _open(self, num_slots: int) -> Tiers:
        num_ssd_blocks = min((report.capacity_blocks for report in self._ssd_reports), default=0)
        if self._ssd_reports and not num_ssd_blocks:
            logger.warning("tier.off tier=ssd: a rank can keep no block there")
        events = None if self._announcer is None else self._announcer.log
        tiers = open_tiers(self._deployment, num_slots, num_ssd_blocks, self._counters, events)
        if self._is_reset and tiers.ssd is not None:
            tiers.ssd.reset()  # what the workers have found was computed with the old weights
        return tiers

    def _note_use(self, state: S) -> None:
        """Count a request as a use of what it finds: once, however often it is asked about.

        It finds what is there when it comes: what is brought from SSD for it is not used again.
        """
        tiers = self._readable
        if tiers is None or state.is_counted:
            return
        state.is_counted = True
        if not tiers.manager.note_use(state.keys()):
            self._counters.add("match_miss")
        elif self._announcer is not None:
            announce_found(self._announcer, state, tiers)

    def _lower(self, state: S) -> LowerTierRequest | None:
        """Return a request's dealings with the SSD tier, if there is one; they begin here."""
        if state.lower is None and self._tiers is not None and self._tiers.ssd is not None:
            keys = state.keys()
            num_host_blocks = self._tiers.manager.lookup(keys, tier="host").num_ready
            state.lower = LowerTierRequest(
                self._tiers.ssd, state.request_id, keys, num_host_blocks, state.num_durable_blocks
            )
        return state.lower

    def _plan_get(self, lease: Lease, start: int, pages: list[int]) -> TransferPlan | None:
        """Plan to fill `pages` with the tokens from `start` on."""
        if self._tiers is None or not pages:
            return None
        page_tokens, block_tokens = self._deployment.page_tokens, self._deployment.block_tokens
        first_block, offset = divmod(start, block_tokens)
        end = start + len(pages) * page_tokens
        return self._tiers.manager.plan_get(
            lease,
            EnginePages(pages, offset // page_tokens),
            first_block=first_block,
            num_blocks=-(-end // block_tokens) - first_block,
        )

    def _drop_from(self, state: S, bad_block: int) -> None:
        state.note_tried(min(state.num_tried_blocks, bad_block))
        keys = state.keys()[: bad_block + 1]
        if self._tiers is not None and len(keys) > bad_block:
            self._tiers.manager.drop_from(keys, tier="host")

    def _conclude(self, completion: Completion) -> None:
        """Count an ended transfer, and see what it makes possible."""
        if completion.kind is JobKind.GET:
            self._conclude_load(completion)
        elif completion.kind is JobKind.PUT:
            self._conclude_save(completion)
        elif self.ssd is not None:
            self.ssd.conclude(completion, time.monotonic())

    def _conclude_load(self, completion: Completion) -> None:
        """Count what was loaded; a request whose load failed loads no more."""
        self._record(completion)
        state, num_tokens, num_ssd_tokens = self._loading.pop(completion.job_id)
        state.is_loading = False
        if completion.status is not Status.OK:
            state.may_load = False
        elif not self._deployment.cache.load_async or self.states.get(state.request_id) is state:
            # Else the request ended first. One that loads and computes in a step may end with it.
            self._counters.add("load_tokens", num_tokens)
            self._counters.add("ssd_load_tokens", num_ssd_tokens)

    def _conclude_save(self, completion: Completion) -> None:
        """Count what was saved and let SSD have it; a request whose save failed saves no more.

        One that found a busy lane tries again with its next block.
        """
        self._record(completion)
        self._counters.add("save_tokens", completion.num_published * self._deployment.block_tokens)
        self._staging.give_back(completion.job_id)
        state = self.saving.pop(completion.job_id)
        state.may_save = state.may_save and completion.status in {Status.OK, Status.BUSY}
        if state.lower is not None:
            state.lower.demote(state.keys())

    def _record(self, completion: Completion) -> None:
        """Count a load's or save's bytes, seconds and lost blocks."""
        moved, took, lost = _METRICS[completion.kind]
        self._counters.add(moved, completion.num_bytes)
        self._counters.add(took, completion.seconds)
        if completion.kind is JobKind.PUT and completion.status is Status.BUSY:
            self._counters.add("save_busy_blocks", completion.num_lost)
            return
        self._counters.add(lost, completion.num_lost)
        if completion.num_lost:
            logger.warning(
                "transfer.failed kind=%s request=%s blocks=%d status=%s",
                completion.kind.value,
                clipped(completion.request_id),
                completion.num_lost,
                completion.status.name,
            )
