"""One direction of a store: its lane, whether it is of use now, and what it has moved."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flexkv_core.block_store.block_store import Copy
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.errors import TierError
from flexkv_core.metrics import Counters
from flexkv_core.plan import Status, TransferPlan, TransferResult

__all__ = ["Direction"]

_FAILURES = frozenset({Status.ERROR, Status.TIMEOUT})
_PATIENCE_S = 10.0
"""How long behind its limit a call may end before its disk is said to hang."""

_COPIES_KEPT = 1024
"""For whoever asks; nobody does where SGLang's metrics are off."""


class Direction:
    """Loads, or saves: the lane serves one call at a time.

    Thread: any; `run` within `attempt`. `_counting` guards what is counted and is taken last.
    """

    def __init__(
        self,
        name: str,
        lane: Lane,
        health: Health,
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the lane.

        Args:
            name: "load" or "save", as metrics have it.
            lane: Its results are complete when it has drained.
            health: Of the tier in this direction.
            limit_s: What a call may take.
            clock: What deadlines are compared with.
        """
        self._name = name
        self._lane = lane
        self._health = health
        self._limit_s = limit_s
        self._clock = clock
        self._calling = threading.Lock()
        self._counting = threading.Lock()
        self._counters = Counters()
        self._copies: deque[Copy] = deque(maxlen=_COPIES_KEPT)

    @property
    def is_off(self) -> bool:
        """Whether it has failed and is left alone."""
        return self._health.is_off

    @property
    def deadline_s(self) -> float:
        """By when a call that begins now is to end."""
        return self._clock() + self._limit_s

    @contextmanager
    def attempt(self) -> Iterator[bool]:
        """Have it for one call; False where it fails and is left alone."""
        with self._calling:
            now_s = self._clock()
            is_allowed = self._health.allows(now_s)
            if is_allowed:
                self._health.begin(now_s)
            yield is_allowed

    def run(self, plans: Sequence[TransferPlan]) -> list[TransferResult]:
        """Carry out plans at the same time, and say how each ended, in any order."""
        if not plans:
            return []
        begin_s = self._clock()
        for plan in plans:
            self._lane.submit(plan)
        results = self._lane.poll()
        while len(results) < len(plans):
            self._lane.drain(self._limit_s)
            results += self._lane.poll()
        is_ok = not any(result.status in _FAILURES for result in results)
        self._health.note(ok=is_ok, now_s=self._clock())
        self._count(plans, results, self._clock() - begin_s)
        return results

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Let no call be under way; a disk that hangs must not hang the thread that schedules.

        Raises:
            TierError: A call does not end.
        """
        if not self._calling.acquire(timeout=self._limit_s + _PATIENCE_S):
            msg = (
                f"a {self._name} does not end, and what is stored stays: if the weights have "
                "changed, delete it before the next start"
            )
            raise TierError("ssd", msg)
        try:
            yield
        finally:
            self._calling.release()

    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""
        with self._counting:
            return self._counters.drain()

    def take_copies(self) -> list[Copy]:
        """Return the calls that have moved something since the last call of this."""
        with self._counting:
            copies = list(self._copies)
            self._copies.clear()
        return copies

    def close(self) -> None:
        """Close the lane; within `idle`."""
        self._lane.close()

    def _count(
        self, plans: Sequence[TransferPlan], results: Sequence[TransferResult], seconds: float
    ) -> None:
        num_blocks = sum(result.num_blocks for result in results)
        num_bytes = sum(result.num_bytes for result in results)
        num_lost = sum(plan.num_blocks for plan in plans) - num_blocks
        with self._counting:
            self._counters.add(f"{self._name}_bytes", num_bytes)
            self._counters.add(f"{self._name}_seconds", seconds)
            self._counters.add(f"{self._name}_failed_blocks", num_lost)
            if num_blocks:
                self._copies.append(Copy(num_blocks, num_bytes, seconds))
