"""Copies in flight between two tiers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flexkv_core.block.types import BlockKey, JobId, RequestId
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.manager import CacheManager
from flexkv_core.plan import TransferPlan

__all__ = ["CopiesInFlight", "CopyInFlight"]

_PLAN_BYTES = 32 << 20
"""Blocks become findable only when their plan ends, so long copies are split: what arrived before
a deadline can then be used."""

_MAX_PLANS = 8
"""The most plans one copy is split into, since each costs a step about 10 us."""

_GRACE_S = 1.0
"""How long after its deadline a plan may still be reported without being overdue."""


@dataclass(frozen=True, slots=True)
class CopyInFlight:
    """One plan, and the chain that it copies a part of."""

    plan: TransferPlan
    keys: Sequence[BlockKey]
    """Empty once a reset has emptied its tiers."""

    first_block: int


class CopiesInFlight:
    """Plans copies of chains from one tier to another, a part at a time, and keeps count.

    Thread: scheduler thread only.
    """

    def __init__(
        self, manager: CacheManager, source: str, target: str, *, block_bytes: int, max_blocks: int
    ) -> None:
        """Plan from `source` to `target`; at most `max_blocks` are in flight at any time."""
        self._manager = manager
        self._source = source
        self._target = target
        self._plan_blocks = max(1, _PLAN_BYTES // block_bytes)
        self._max_blocks = max_blocks
        self._in_flight: dict[JobId, CopyInFlight] = {}
        self._overdue: set[JobId] = set()
        """Plans of `_in_flight` already reported as overdue."""

        self._num_blocks = 0

    @property
    def num_blocks(self) -> int:
        """Blocks in flight."""
        return self._num_blocks

    @property
    def num_more(self) -> int:
        """Blocks that may be started now."""
        return max(0, self._max_blocks - self._num_blocks)

    def start(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        end_block: int,
        deadline_s: float | None = None,
    ) -> list[TransferPlan]:
        """Copy what the target lacks of the first `end_block` blocks of `keys`, head first.

        It ends early if the source has no more, the target has no room, or `max_blocks` are in
        flight. Blocks already being copied are not copied again.
        """
        position = self._manager.lookup(keys, tier=self._target).num_known
        num_ready = self._manager.lookup(keys, tier=self._source).num_ready
        end = min(end_block, num_ready, position + self.num_more)
        step = max(self._plan_blocks, -(-(end - position) // _MAX_PLANS))
        plans: list[TransferPlan] = []
        while position < end:
            plan = self._start_one(request_id, keys, min(position + step, end), deadline_s)
            if plan is None:
                break
            plans.append(plan)
            position += plan.num_blocks
        return plans

    def end(self, job_id: JobId) -> CopyInFlight | None:
        """Forget a plan that has ended; None if it was not one of these."""
        copy = self._in_flight.pop(job_id, None)
        if copy is not None:
            self._num_blocks -= copy.plan.num_blocks
            self._overdue.discard(job_id)
        return copy

    def forget_chains(self) -> None:
        """Forget which chains are copied, after a reset; the plans still count until they end."""
        for job_id, copy in self._in_flight.items():
            self._in_flight[job_id] = replace(copy, keys=())

    def has_newly_overdue(self, now_s: float) -> bool:
        """Return whether a plan has become overdue since the last call."""
        overdue = {
            job_id
            for job_id, copy in self._in_flight.items()
            if copy.plan.deadline_s is not None and now_s > copy.plan.deadline_s + _GRACE_S
        }
        is_new = not overdue <= self._overdue
        self._overdue = overdue
        return is_new

    def _start_one(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        end: int,
        deadline_s: float | None,
    ) -> TransferPlan | None:
        manager = self._manager
        # Pin the whole run: pinning only what is copied would split it for good.
        lease = manager.hold(request_id, keys, tier=self._source)
        assert lease is not None, "its blocks were seen a moment ago"
        reservation = manager.reserve(request_id, keys, tier=self._target, end=end)
        if isinstance(reservation, Refusal):
            manager.release(lease)
            return None
        plan = manager.plan_copy(lease, reservation, deadline_s=deadline_s)
        assert plan is not None, "making room in one tier never takes from another"
        self._in_flight[plan.job_id] = CopyInFlight(plan, keys, reservation.first_block)
        self._num_blocks += plan.num_blocks
        return plan
