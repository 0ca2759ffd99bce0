"""The control plane: decides what moves, and never moves it."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from flexkv_core.block.types import BlockKey, JobId, RequestId
from flexkv_core.control import planner
from flexkv_core.control.eviction.base import EvictionPolicy
from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.index.integrity import check_index
from flexkv_core.control.index.node import ChainEnd, Entry, TierState
from flexkv_core.control.index.radix import PrefixIndex, Presence, Refusal
from flexkv_core.control.index.slot_pool import SlotPool
from flexkv_core.control.job import Completion, Job, JobKind
from flexkv_core.control.lease import Claim, ClaimState, Lease, Reservation
from flexkv_core.control.planner import Ticket
from flexkv_core.errors import ConfigError
from flexkv_core.events import EventLog
from flexkv_core.metrics import Recorder
from flexkv_core.plan import EnginePages, TransferPlan, TransferResult

__all__ = ["CacheManager", "TierSpec"]


@dataclass(frozen=True, slots=True)
class TierSpec:
    """One tier as the control plane sees it."""

    name: str
    capacity_blocks: int
    eviction_policy: str = "lru"
    addressed_by: Literal["slot", "key"] = "slot"
    """How plans address its blocks. If by key, slots only account for capacity."""

    def __post_init__(self) -> None:
        if self.capacity_blocks < 1:
            msg = (
                f"tier {self.name!r} has room for {self.capacity_blocks} blocks, expected 1 or "
                "more: give it more memory, or leave it out"
            )
            raise ConfigError(msg)

    def make_state(self, index: int) -> TierState:
        """Return the index's state for this tier, number `index` of its tiers."""
        pool = SlotPool(self.capacity_blocks)
        policy: EvictionPolicy[Entry] = create_policy(self.eviction_policy, self.capacity_blocks)
        return TierState(index, self.name, self.addressed_by, pool, policy)


class CacheManager:
    """Knows which blocks are where, and hands out plans to move them.

    Four verbs, forward only. To load: `match`, `plan_get`, `complete`. To save: `reserve`,
    `plan_put`, `complete`. Between two tiers: `match` and `reserve`, `plan_copy`, `complete`.
    Ranks report on a plan in any order and in different steps; a get ends with the report of
    every rank, a put or copy with that of every owner. What is evicted depends on what was used,
    and only `note_use` says so.

    `control.index.integrity` lists and checks the invariants that hold between any two calls.

    Thread: scheduler thread only. No method blocks or reads a clock.
    """

    def __init__(
        self,
        tiers: Sequence[TierSpec],
        *,
        ranks: int = 1,
        owners: Collection[int] = (0,),
        recorder: Recorder,
        events: EventLog | None = None,
    ) -> None:
        self._tiers = {tier.name: tier.make_state(index) for index, tier in enumerate(tiers)}
        self._index = PrefixIndex([*self._tiers.values()], recorder, events)
        self._readers = range(ranks)
        self._owners = frozenset(owners)
        self._recorder = recorder
        self._claims: dict[RequestId, list[Claim]] = {}
        """Leases and reservations without a plan, by request."""

        self._jobs: dict[JobId, Job] = {}
        self._job_ids = itertools.count(1)
        self._epoch = 0

    def note_use(self, keys: Sequence[BlockKey]) -> bool:
        """Count a use of `keys` in every tier that holds some of them.

        Call it once for each request, when it comes. A block that one tier serves is used in all,
        or the most popular ones would leave the tiers that nobody has to read them from. What is
        read or written on behalf of the request is no further use.

        Returns:
            Whether any of `keys` is in a tier, or being written there.
        """
        return self._index.note_use(keys)

    def match(
        self, request_id: RequestId, keys: Sequence[BlockKey], *, tier: str = "host"
    ) -> Lease | None:
        """Pin the longest prefix of `keys` that is ready in `tier`.

        Returns:
            A lease, to be ended exactly once by `release`, `cancel` or the completion of its
            plan; None on a miss.
        """
        match = self._index.match(self._tiers[tier], keys)
        if match is None:
            return None
        lease = Lease(request_id, 0, match.num_blocks, entry=match.entry)
        self._open(lease)
        return lease

    def reserve(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        *,
        tier: str = "host",
        end: int | None = None,
    ) -> Reservation | Refusal:
        """Make room in `tier` for the blocks of `keys` it lacks, or for the leading ones that fit.

        With `end`, only for those among the first `end` blocks.

        Blocks that are present, or being written for any request, are skipped. `keys` is copied:
        the caller may go on appending to it.

        Returns:
            A reservation, to be ended exactly once by `abort`, `cancel` or the completion of its
            plan; or why there is none.
        """
        write = self._index.reserve(self._tiers[tier], keys, end=end)
        if isinstance(write, Refusal):
            return write
        num_blocks = write.end_block - write.first_block
        reservation = Reservation(request_id, write.first_block, num_blocks, write=write)
        self._open(reservation)
        return reservation

    def plan_get(
        self,
        lease: Lease,
        pages: EnginePages,
        *,
        first_block: int,
        num_blocks: int,
        deadline_s: float | None = None,
    ) -> TransferPlan | None:
        """Plan to load blocks `first_block` to `first_block + num_blocks` of `lease` into `pages`.

        Returns:
            None, with `lease` still open, if a drop or a reset removed blocks since the match.

        Raises:
            LeaseError: The lease is not open, or does not hold these blocks.
        """
        ticket = self._ticket(deadline_s)
        plan = planner.plan_get(ticket, lease, pages, first_block, num_blocks)
        return self._start(JobKind.GET, plan, lease)

    def plan_put(
        self, reservation: Reservation, pages: EnginePages, *, deadline_s: float | None = None
    ) -> TransferPlan | None:
        """Plan to save `pages` as the blocks of `reservation`.

        Returns:
            None, with `reservation` still open, if a failed write of an earlier block, a drop or
            a reset removed its blocks.

        Raises:
            LeaseError: The reservation is not open.
        """
        plan = planner.plan_put(self._ticket(deadline_s), reservation, pages)
        return self._start(JobKind.PUT, plan, reservation)

    def plan_copy(
        self, lease: Lease, reservation: Reservation, *, deadline_s: float | None = None
    ) -> TransferPlan | None:
        """Plan to copy the blocks of `reservation` from the tier of `lease`: promote or demote.

        Returns:
            None, with both still open, if blocks of either have been removed since.

        Raises:
            LeaseError: One is not open, or the lease lacks blocks of the reservation.
        """
        plan = planner.plan_copy(self._ticket(deadline_s), lease, reservation)
        return self._start(JobKind.COPY, plan, lease, reservation)

    def complete(self, result: TransferResult) -> Completion | None:
        """Count one rank's report; with the last one, end the plan and publish what it wrote.

        An unexpected report changes nothing: a second one from the same rank, or one on an unknown
        plan or of another epoch. A plan from before a reset ends without publishing anything.

        Returns:
            None until the last rank has reported.
        """
        job = self._jobs.get(result.job_id)
        if job is None or not job.accept(result):
            self._recorder.add("late_results")
            return None
        if job.plan.epoch < self._epoch:
            self._recorder.add("late_results")
        if job.waiting_ranks:
            return None
        del self._jobs[job.plan.job_id]
        return job.end(self._index)

    def lookup(self, keys: Sequence[BlockKey], *, tier: str) -> Presence:
        """Return how much of `keys` is in `tier`, without counting a use or pinning anything."""
        return self._index.lookup(self._tiers[tier], keys)

    def begins_chain(self, key: BlockKey) -> bool:
        """Tell whether any tier holds a chain that begins with `key`."""
        return self._index.begins_chain(key)

    def is_ready(self, key: BlockKey, *, tier: str) -> bool:
        """Tell whether a match of this one key would find it in `tier`."""
        return self._index.is_ready(self._tiers[tier], key)

    def restore(
        self,
        keys: Sequence[BlockKey],
        *,
        tier: str,
        first_block: int = 0,
        near: ChainEnd | None = None,
    ) -> ChainEnd:
        """Add blocks that every owner has found in its part of `tier`, as far as they fit.

        Args:
            keys: A chain.
            tier: The tier.
            first_block: Where they begin; nothing is added if blocks before them have left.
            near: Where an earlier part of the chain was found to end: the walk to it is saved.

        Returns:
            How much of the chain is there now.
        """
        return self._index.restore(self._tiers[tier], keys, first_block, near)

    def resize(self, capacity_blocks: int, *, tier: str) -> None:
        """Grow to `capacity_blocks`, or evict and shrink as far as blocks in use allow.

        Cost: O(1) if that is its size already.
        """
        state = self._tiers[tier]
        self._index.evict(state, state.pool.num_used - capacity_blocks)
        state.pool.resize(capacity_blocks)

    def take_gone(self, tier: str) -> list[BlockKey]:
        """Return the keys that left `tier` since the last call, for its workers to forget.

        None of them is being read or written. Workers must forget them before they begin any plan
        that was made later.
        """
        state = self._tiers[tier]
        gone, state.gone = state.gone, []
        return gone

    def release(self, lease: Lease) -> None:
        """End a lease that has no plan.

        Raises:
            LeaseError: It is not open.
        """
        self._abandon(lease)

    def abort(self, reservation: Reservation) -> None:
        """End a reservation that has no plan; its blocks, and any after them, are dropped.

        Raises:
            LeaseError: It is not open.
        """
        self._abandon(reservation)

    def cancel(self, request_id: RequestId) -> None:
        """End the leases and reservations of `request_id` that have no plan.

        Plans in flight end with their reports.
        """
        for claim in tuple(self._claims.get(request_id, ())):
            self._abandon(claim)

    def drop_from(self, keys: Sequence[BlockKey], *, tier: str) -> None:
        """Make the last block of `keys`, and all after it, unfindable in `tier`.

        For a block that turned out to be corrupt or lost. Reads and writes in flight there end as
        usual; the slots are freed then.
        """
        self._index.drop_from(self._tiers[tier], keys)

    def reset(self) -> None:
        """Empty every tier: from now on, nothing stored before is found.

        Slots of plans in flight are freed when those plans complete, slots of open leases and
        reservations when they end. Cost: O(runs in the index).
        """
        self._epoch += 1
        self._index.clear()
        self._recorder.add("reset")

    def request_of(self, job_id: JobId) -> RequestId:
        """Return the request that a plan in flight was made for."""
        return self._jobs[job_id].claims[0].request_id

    @property
    def num_in_flight(self) -> int:
        """Plans that some rank has not reported on."""
        return len(self._jobs)

    def num_used_blocks(self, tier: str = "host") -> int:
        """Return the slots of `tier` that hold a block or may still be read or written."""
        return self._tiers[tier].pool.num_used

    def num_free_blocks(self, tier: str = "host") -> int:
        """Return the slots of `tier` that can be taken without evicting."""
        return self._tiers[tier].pool.num_free

    def check_integrity(self) -> None:
        """Check every invariant, for tests. Cost: O(blocks).

        Raises:
            IntegrityError: One does not hold.
        """
        claims = [claim for claims in self._claims.values() for claim in claims]
        claims += [claim for job in self._jobs.values() for claim in job.claims]
        check_index(
            self._index,
            pins=Counter(claim.entry for claim in claims if isinstance(claim, Lease)),
            writes={claim.write for claim in claims if isinstance(claim, Reservation)},
        )

    def _ticket(self, deadline_s: float | None) -> Ticket:
        """Return the identity of a new plan."""
        return Ticket(JobId(next(self._job_ids)), self._epoch, deadline_s)

    def _open(self, claim: Claim) -> None:
        """Remember `claim`, which has no plan yet, for `cancel`."""
        self._claims.setdefault(claim.request_id, []).append(claim)

    def _close(self, claim: Claim) -> None:
        """Forget `claim`, which is about to be planned or ended."""
        claim.expect_open()
        claims = self._claims[claim.request_id]
        claims.remove(claim)
        if not claims:
            del self._claims[claim.request_id]

    def _abandon(self, claim: Claim) -> None:
        """End `claim` without a plan."""
        self._close(claim)
        claim.end(self._index)

    def _start(
        self, kind: JobKind, plan: TransferPlan | None, *claims: Claim
    ) -> TransferPlan | None:
        """Expect reports on `plan`, if there is one, and hold `claims` until then."""
        if plan is None:
            return None
        for claim in claims:
            self._close(claim)
            claim.state = ClaimState.PLANNED
        ranks = self._readers if kind is JobKind.GET else self._owners
        self._jobs[plan.job_id] = Job(kind, plan, claims, set(ranks), plan.num_blocks)
        return plan
