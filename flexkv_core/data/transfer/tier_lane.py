"""The lane between host slots and a tier that finds blocks by key: SSD, remote stores."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import msgspec
import numpy as np
from typing_extensions import override

from flexkv_core.block.types import JobId
from flexkv_core.data.tiers.base import Tier, TierBlock
from flexkv_core.data.tiers.memory import BlockMemory
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.data.transfer.results import ended, num_leading, refused
from flexkv_core.data.transfer.segments import find_slot_problem
from flexkv_core.plan import HostSlots, Status, StoredBlocks, TransferPlan, TransferResult

__all__ = ["TierLane"]

logger = logging.getLogger(__name__)

_CALL_BYTES = 2 << 20
"""Beside a busy Python thread, reads of 2 MiB keep 0.8 x the speed of a drive and reads of 256 KiB
0.1 x: each has to win back the GIL (8 threads, 2 cores, November 2026)."""

_Move = Callable[[Sequence[TierBlock], float | None], list[Status]]


@dataclass(slots=True, eq=False)
class _Job:
    """One plan under way; its fields are guarded by the lane's lock."""

    plan: TransferPlan
    move: _Move
    is_chain: bool
    num_open_calls: int = 0
    statuses: list[Status] = field(init=False)
    """How each block ended, as far as is known."""

    num_useful: int = field(init=False)
    """Blocks that are still worth moving: of a chain, those up to the first that failed."""

    begin_s: float | None = None

    def __post_init__(self) -> None:
        self.num_useful = self.plan.num_blocks
        self.statuses = [Status.OK] * self.num_useful

    def record(self, first_block: int, statuses: Sequence[Status]) -> None:
        """Note how consecutive blocks ended."""
        self.statuses[first_block : first_block + len(statuses)] = statuses
        num_good = num_leading(statuses)
        if self.is_chain and num_good < len(statuses):
            self.num_useful = min(self.num_useful, first_block + num_good)
        self.num_open_calls -= 1


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """Consecutive blocks of a job that are given to the tier together."""

    job: _Job
    first_block: int
    blocks: Sequence[TierBlock]


class TierLane(AsyncLane):
    """Calls the tier from threads of its own; one plan may be served by several at once.

    A job is reported when all of its calls have returned, so a slot is never given to somebody
    else while a late read can still write into it. What has not begun by the deadline does not
    begin, nor does what lies behind a failed block of a chain: without it, it is of no use. Where
    loads must not wait behind saves, give each direction a lane.

    A tier that raises has broken its contract: the blocks of that call end with ERROR, and the
    thread with a traceback on stderr. Another takes its place; where the system has none left, the
    lane closes itself.

    Thread: any. The queue, the jobs and the results are guarded by `_changed`.
    """

    def __init__(
        self,
        rank: int,
        tier: Tier,
        memory: BlockMemory,
        *,
        num_threads: int = 8,
        max_waiting_calls: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the threads.

        Args:
            rank: Whose results these are.
            tier: Opened on `memory`; stays the caller's to close, once `drain` said True.
            memory: Where slots lie.
            num_threads: Calls in flight; 4 to 16 reach the limit of a drive, 8 is a fair choice.
            max_waiting_calls: When so many wait, new plans are refused with BUSY.
            clock: What deadlines are compared with.
        """
        self._rank = rank
        self._tier = tier
        self._num_slots = memory.num_slots
        self._slot_bytes = memory.slot_bytes
        self._blocks_per_call = max(1, _CALL_BYTES // memory.slot_bytes)
        self._max_waiting_calls = max_waiting_calls
        self._clock = clock
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        # Of the same lock, but for the threads below alone: a call must not wake who waits for
        # results instead of a thread that is idle.
        self._called = threading.Condition(lock)
        self._waiting: deque[_Call] = deque()
        self._num_open_jobs = 0
        self._is_closed = False
        self._results: list[TransferResult] = []
        for index in range(num_threads):
            self._start_thread(f"flexkv-{tier.name}-{index}")

    @override
    def submit(self, plan: TransferPlan) -> None:
        match plan.source, plan.target:
            case HostSlots() as slots, StoredBlocks() as stored:
                is_save = True
            case StoredBlocks() as stored, HostSlots() as slots:
                is_save = False
            case _:
                self._refuse(plan, Status.ERROR, "a tier lane serves host slots and stored blocks")
                return
        problem = self._find_problem(plan, slots, stored)
        if problem:
            self._refuse(plan, Status.ERROR, problem)
        elif _is_late(plan, self._clock()):
            self._refuse(plan, Status.TIMEOUT)
        else:
            tier = self._tier.snapshot()
            move = tier.write if is_save else tier.read
            self._enqueue(_Job(plan, move, stored.is_chain), self._blocks(slots, stored))

    @override
    def poll(self) -> list[TransferResult]:
        with self._changed:
            now_s = self._clock()
            self._drop_waiting(lambda call: _is_late(call.job.plan, now_s), Status.TIMEOUT)
            results, self._results = self._results, []
        return results

    @override
    def drain(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._num_open_jobs == 0, timeout_s)

    @override
    def wait(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._results or not self._num_open_jobs, timeout_s)

    @override
    def cancel(self, job_id: JobId) -> None:
        with self._changed:
            self._drop_waiting(lambda call: call.job.plan.job_id == job_id, Status.TIMEOUT)

    @override
    def close(self) -> None:
        """Begin nothing more. Calls that are under way end when the tier lets them: see `drain`."""
        with self._changed:
            self._is_closed = True
            self._drop_waiting(lambda _: True, Status.CLOSED)
            self._called.notify_all()

    def _drop_waiting(self, is_dropped: Callable[[_Call], bool], status: Status) -> None:
        """End calls that have not begun; under the lock."""
        waiting, self._waiting = self._waiting, deque()
        dropped: list[_Call] = []
        for call in waiting:
            (dropped if is_dropped(call) else self._waiting).append(call)
        for call in dropped:
            self._record(call, [status] * len(call.blocks))

    def _find_problem(self, plan: TransferPlan, slots: HostSlots, stored: StoredBlocks) -> str:
        if stored.tier != self._tier.name:
            return f"this lane serves tier {self._tier.name}, not {stored.tier}"
        if len(stored.keys) != plan.num_blocks:
            return f"the plan has {len(stored.keys)} keys for {plan.num_blocks} blocks"
        return find_slot_problem(plan, slots, self._num_slots)

    def _blocks(self, slots: HostSlots, stored: StoredBlocks) -> list[TierBlock]:
        ids = np.frombuffer(slots.slots, np.int64).tolist()
        parents = (stored.parent, *stored.keys) if stored.is_chain else repeat(None)
        triples = zip(stored.keys, parents, ids, strict=False)
        return [TierBlock(key, parent, slot) for key, parent, slot in triples]

    def _enqueue(self, job: _Job, blocks: list[TierBlock]) -> None:
        step = self._blocks_per_call
        with self._changed:
            if self._is_closed or len(self._waiting) >= self._max_waiting_calls:
                self._refuse(job.plan, Status.CLOSED if self._is_closed else Status.BUSY)
                return
            for first in range(0, len(blocks), step):
                self._waiting.append(_Call(job, first, blocks[first : first + step]))
                job.num_open_calls += 1
            self._num_open_jobs += 1
            self._called.notify(job.num_open_calls)

    def _refuse(self, plan: TransferPlan, status: Status, error: str = "") -> None:
        with self._changed:
            self._results.append(refused(plan, self._rank, status, error))
            self._changed.notify_all()

    def _start_thread(self, name: str) -> None:
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        """Run calls until the lane is closed; the body of each thread."""
        try:
            for call in self._calls():
                self._run(call)
                del call  # while idle, it would keep alive what its snapshot of the tier holds
        finally:
            if not self._is_closed:
                self._replace_thread()

    def _replace_thread(self) -> None:
        """Let another thread take the place of this one, which a call has ended."""
        try:
            self._start_thread(threading.current_thread().name)
        except (RuntimeError, MemoryError) as error:
            # Said here: only what was waiting for this lane learns of it from its results.
            logger.warning("tier.closed: a lane of tier %s has stopped: %s", self._tier.name, error)
            self.close()

    def _calls(self) -> Iterator[_Call]:
        while True:
            with self._changed:
                self._called.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                call = self._waiting.popleft()
                if call.job.begin_s is None:
                    call.job.begin_s = self._clock()
            yield call
            del call  # as above

    def _run(self, call: _Call) -> None:
        statuses = [Status.ERROR] * len(call.blocks)
        try:
            statuses = self._move(call)
        finally:
            with self._changed:
                self._record(call, statuses)

    def _move(self, call: _Call) -> list[Status]:
        """Let the tier move the bytes, if that still makes sense; not under the lock."""
        plan = call.job.plan
        if _is_late(plan, self._clock()) or call.first_block > call.job.num_useful:
            return [Status.TIMEOUT] * len(call.blocks)
        return call.job.move(call.blocks, plan.deadline_s)

    def _record(self, call: _Call, statuses: Sequence[Status]) -> None:
        """Note how `call` ended, and report its job if it was the last; under the lock."""
        job = call.job
        job.record(call.first_block, statuses)
        if job.num_open_calls == 0:
            self._results.append(self._result(job))
            self._num_open_jobs -= 1
            self._changed.notify_all()

    def _result(self, job: _Job) -> TransferResult:
        result = ended(
            job.plan,
            self._rank,
            job.statuses,
            is_chain=job.is_chain,
            block_bytes=self._slot_bytes,
            seconds=0.0 if job.begin_s is None else self._clock() - job.begin_s,
        )
        if result.status is not Status.ERROR:
            return result
        block = job.statuses.index(Status.ERROR)
        error = f"tier {self._tier.name} failed at block {block} of the plan"
        return msgspec.structs.replace(result, error=error)


def _is_late(plan: TransferPlan, now_s: float) -> bool:
    return plan.deadline_s is not None and now_s >= plan.deadline_s
