"""Copies in flight between two tiers."""

import math
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

_MIN_PLAN_BYTES = 2 << 20
"""What a lane gives its tier in one call: half of a call is of no use to anybody."""

_MAX_PLANS = 8
"""The most plans one copy is split into, since each costs a step about 10 us."""

_GRACE_S = 2.0
"""How long after its deadline a plan may still be reported without being overdue."""

_MAX_PAUSE_S = 1.0
"""What the longest time between two steps counts: an engine that does not step hears nothing."""


@dataclass(frozen=True, slots=True)
class CopyInFlight:
    """One plan, and the chain that it copies a part of."""

    plan: TransferPlan
    keys: Sequence[BlockKey]
    """Empty once a reset has emptied its tiers."""

    first_block: int
    end_block: int
    """Where the chain was to be copied to, by this plan and those after it."""

    overdue_s: float
    """On the clock that runs while the engine listens."""


class CopiesInFlight:
    """Plans copies of chains from one tier to another, a part at a time, and keeps count.

    Whether an answer is late is judged by a clock that runs only while the engine steps, and so
    could have heard one: `heard_s`.

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
        self._min_plan_blocks = max(1, _MIN_PLAN_BYTES // block_bytes)
        self._limit_blocks = self._max_blocks = max_blocks
        self._in_flight: dict[JobId, CopyInFlight] = {}
        self._overdue: set[JobId] = set()
        """Plans of `_in_flight` already reported as overdue."""

        self._num_blocks = 0
        self.heard_s = 0.0
        """Seconds in which a report could have come."""

        self._last_step_s: float | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks in flight."""
        return self._num_blocks

    @property
    def num_more(self) -> int:
        """Blocks that may be started now."""
        return max(0, self._max_blocks - self._num_blocks)

    def copies_for(self, request_id: RequestId) -> bool:
        """Return whether something is on its way for a request."""
        return any(self._manager.request_of(job_id) == request_id for job_id in self._in_flight)

    def listen(self, now_s: float) -> None:
        """Note that a step begins: reports of those before it have been taken in."""
        if self._last_step_s is not None:
            self.heard_s += min(now_s - self._last_step_s, _MAX_PAUSE_S)
        self._last_step_s = now_s

    def narrow(self) -> None:
        """Have no more in flight than there is: more was refused."""
        self._max_blocks = min(max(self._num_blocks, self._plan_blocks), self._limit_blocks)

    def widen(self) -> None:
        """Have a block more in flight: what was there has ended well."""
        self._max_blocks = min(self._max_blocks + 1, self._limit_blocks)

    def start(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        end_block: int,
        *,
        now_s: float = 0.0,
        patience_s: float = math.inf,
    ) -> list[TransferPlan]:
        """Copy what the target lacks of the first `end_block` blocks of `keys`, head first.

        It ends early if the source has no more, the target has no room, or `max_blocks` are in
        flight. Blocks already being copied are not copied again. With a deadline, small copies are
        split, too: what has come by then can be used.

        Args:
            request_id: Whose chain it is.
            keys: The chain.
            end_block: Where to end.
            now_s: When the copy is started, if there is a deadline.
            patience_s: The deadline, in seconds from now.
        """
        position = self._manager.lookup(keys, tier=self._target).num_known
        num_ready = self._manager.lookup(keys, tier=self._source).num_ready
        end = min(end_block, num_ready, position + self.num_more)
        deadline_s = None if math.isinf(patience_s) else now_s + patience_s
        overdue_s = self.heard_s + patience_s + _GRACE_S
        least = self._plan_blocks if deadline_s is None else self._min_plan_blocks
        step = max(least, -(-(end - position) // _MAX_PLANS))
        plans: list[TransferPlan] = []
        while position < end:
            planned = self._plan(request_id, keys, min(position + step, end), deadline_s)
            if planned is None:
                break
            plan, first_block = planned
            copy = CopyInFlight(plan, keys, first_block, end_block, overdue_s)
            self._in_flight[plan.job_id] = copy
            self._num_blocks += plan.num_blocks
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

    def has_newly_overdue(self) -> bool:
        """Return whether a plan has become overdue since the last call."""
        overdue = {
            job_id for job_id, copy in self._in_flight.items() if self.heard_s > copy.overdue_s
        }
        is_new = not overdue <= self._overdue
        self._overdue = overdue
        return is_new

    def _plan(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        end: int,
        deadline_s: float | None,
    ) -> tuple[TransferPlan, int] | None:
        """Plan to copy what the target lacks of the first `end` blocks; None for no room.

        Returns:
            The plan, and its first block.
        """
        manager = self._manager
        # Pin the whole run: pinning only what is copied would split it for good.
        lease = manager.match(request_id, keys, tier=self._source)
        assert lease is not None, "its blocks were seen a moment ago"
        reservation = manager.reserve(request_id, keys, tier=self._target, end=end)
        if isinstance(reservation, Refusal):
            manager.release(lease)
            return None
        plan = manager.plan_copy(lease, reservation, deadline_s=deadline_s)
        assert plan is not None, "making room in one tier never takes from another"
        return plan, reservation.first_block
