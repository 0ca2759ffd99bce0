"""Brings blocks of a lower tier into host memory before they are offered to an engine."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.control.hierarchy.in_flight import CopiesInFlight
from flexkv_core.control.hierarchy.rate import Rate
from flexkv_core.control.index.radix import Presence
from flexkv_core.control.job import Completion
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import Recorder
from flexkv_core.plan import Status, TransferPlan

__all__ = ["Promoter"]

_BLIND_PATIENCE_S = 0.5
"""How long a request waits while nobody knows how long computing takes, until the first prefill
after a start has shown it: enough for a gigabyte of a usual disk, and soon computed anywhere."""


@dataclass(slots=True)
class _Wait:
    """What one request waits for."""

    end_block: int
    since_s: float
    deadline_s: float
    is_over: bool = False
    """The request has had its wait; it does not wait again."""

    has_failed: bool = False
    """One of its copies has ended with an error: however many there are, they are one attempt."""


class Promoter:
    """Decides which requests wait for a tier, and how long.

    A request waits once, until its blocks have arrived or its deadline has passed: half the time
    that computing them would take, half a second if that is unknown, and never longer than
    `timeout_s`. Then it gets what has arrived; what comes later, or cannot be read, it does not
    wait for again. Only as many blocks are copied as should arrive in that time at the tier's
    recent speed, and none if the tier is slower than computing. Blocks already in flight for
    another request are waited for but not copied again. Blocks in flight take at most half the
    host tier. A busy tier ends the wait. One that fails, or does not answer by the deadline, is
    not waited for, except on trial.

    Thread: scheduler thread only.
    """

    def __init__(
        self,
        manager: CacheManager,
        tier: str,
        *,
        block_bytes: int,
        host_blocks: int,
        timeout_s: float,
        recorder: Recorder,
    ) -> None:
        self._manager = manager
        self._tier = tier
        self._timeout_s = timeout_s
        self._recorder = recorder
        self._in_flight = CopiesInFlight(
            manager, tier, "host", block_bytes=block_bytes, max_blocks=max(1, host_blocks // 2)
        )
        self._speed = Rate()
        self._health = Health(f"reading from tier {tier}", recorder.add)
        self._waits: dict[RequestId, _Wait] = {}
        self._plans: list[TransferPlan] = []

    @property
    def is_off(self) -> bool:
        """Whether the tier fails and is only read on trial."""
        return self._health.is_off

    def must_wait(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        now_s: float,
        block_compute_s: float | None,
    ) -> bool:
        """Return whether the request with chain `keys` should wait, and be asked about again.

        Args:
            request_id: The first call for it may start copies; see `take_plans`.
            keys: Its full blocks.
            now_s: `time.monotonic()`.
            block_compute_s: Seconds that computing one block takes, None if that is unknown: then
                copies go on for `timeout_s`, though the request waits for half a second at most.
        """
        wait = self._waits.get(request_id)
        if wait is None:
            wait = self._begin(request_id, keys, now_s, block_compute_s)
            self._waits[request_id] = wait
        elif not wait.is_over:
            self._end_if_over(wait, keys, now_s)
        return not wait.is_over

    def forget(self, request_id: RequestId) -> None:
        """Forget a request that has ended; copies in flight for it go on."""
        self._waits.pop(request_id, None)

    def take_plans(self, now_s: float) -> list[TransferPlan]:
        """Return the plans that were made since the last call; call it in every step."""
        self._in_flight.listen(now_s)
        plans, self._plans = self._plans, []
        return plans

    def conclude(self, completion: Completion, now_s: float) -> bool:
        """Learn from a copy that has ended; return False if it was not started here.

        A block that cannot be read is dropped from its tier, with all after it.
        """
        copy = self._in_flight.end(completion.job_id)
        if copy is None:
            return False
        if completion.status in (Status.OK, Status.TIMEOUT):
            self._speed.note(completion.num_blocks, completion.seconds, now_s)
        self._note_health(completion, now_s)
        if completion.status is Status.BUSY:
            self._recorder.add("ssd_busy_blocks", completion.num_lost)
        if completion.status.is_loss:
            bad_block = copy.first_block + completion.num_sound
            self._manager.drop_from(copy.keys[: bad_block + 1], tier=self._tier)
        self._recorder.add("promoted_blocks", completion.num_published)
        return True

    def reset(self) -> None:
        """Forget which chains are being read, after the manager was reset."""
        self._in_flight.forget_chains()

    def _note_health(self, completion: Completion, now_s: float) -> None:
        wait = self._waits.get(completion.request_id)
        if completion.status is Status.TIMEOUT or (
            completion.status is Status.ERROR and wait is not None and wait.has_failed
        ):
            return  # a deadline that passes is no failure
        if wait is not None:
            wait.has_failed = completion.status is Status.ERROR
        self._health.note(completion.status, now_s)

    def _begin(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        now_s: float,
        block_compute_s: float | None,
    ) -> _Wait:
        """Start copying what is worth copying; if nothing is, the wait is over at once."""
        host = self._manager.lookup(keys, tier="host")
        num_blocks = self._manager.lookup(keys, tier=self._tier).num_ready - host.num_ready
        if block_compute_s is None:
            wait_s, copy_s = min(self._timeout_s, _BLIND_PATIENCE_S), self._timeout_s
        else:
            wait_s = copy_s = min(self._timeout_s, num_blocks * block_compute_s / 2)
        wait = _Wait(host.num_ready, now_s, now_s + wait_s)
        if num_blocks > 0 and copy_s > 0:
            num_in_time = self._num_in_time(host, copy_s, now_s, block_compute_s)
            num_worth = min(num_blocks, num_in_time)
            self._recorder.add("promotion_slow_blocks", num_blocks - num_worth)
            if self._start_copies(request_id, keys, host.num_ready + num_worth, now_s, copy_s):
                wait.end_block += num_worth
        self._end_if_over(wait, keys, now_s)
        return wait

    def _num_in_time(
        self, host: Presence, copy_s: float, now_s: float, block_compute_s: float | None
    ) -> int:
        """Return how many blocks after the ready ones of `host` should arrive in `copy_s`."""
        block_s = self._speed.seconds_for(1, now_s)
        if not block_s:
            return sys.maxsize
        if block_compute_s is not None and block_s >= block_compute_s:
            return 0
        num_own = host.num_known - host.num_ready
        num_of_others = max(0, self._in_flight.num_blocks - num_own)
        return max(0, int(copy_s / block_s) - num_of_others)

    def _start_copies(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        end_block: int,
        now_s: float,
        patience_s: float,
    ) -> bool:
        """Start copies up to `end_block`; return whether they are worth waiting for."""
        if self._in_flight.has_newly_overdue():
            self._health.note_silence(now_s)
        if not self._health.allows(now_s):
            return False
        started = self._in_flight.start(
            request_id, keys, end_block, now_s=now_s, patience_s=patience_s
        )
        if started:
            self._health.begin(now_s)
            self._plans += started
        return bool(started) or not self._health.is_off

    def _end_if_over(self, wait: _Wait, keys: Sequence[BlockKey], now_s: float) -> None:
        """End `wait` if its blocks have arrived, no more are in flight, or its deadline passed."""
        host = self._manager.lookup(keys, tier="host")
        is_late = now_s >= wait.deadline_s
        if host.num_ready >= wait.end_block or host.num_known == host.num_ready or is_late:
            wait.is_over = True
            self._recorder.add("promotion_wait_seconds", now_s - wait.since_s)
            self._recorder.add("promotion_timeouts", is_late and host.num_ready < wait.end_block)
