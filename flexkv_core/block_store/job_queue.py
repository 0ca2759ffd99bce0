"""Jobs that load, or jobs that save: each is given to the lane, and reported once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import msgspec

from flexkv_core.block.types import JobId
from flexkv_core.block_store.blocks import Chain, Copy, JobResult
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.data.transfer.results import ended, statuses_of
from flexkv_core.errors import LeaseError, TierError
from flexkv_core.metrics import Counters
from flexkv_core.plan import (
    Endpoint,
    EnginePages,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)

__all__ = ["JobHooks", "JobQueue"]

_GRACE_S = 10.0
"""How long after its deadline a job may end before its disk counts as hanging."""

_REPOLL_S = 0.1
"""A thread that waits polls again this often: others may have submitted or polled meanwhile."""

_MAX_BLOCKS = 1024
"""In flight. More would only wait for threads, and be too late; and an engine may pin the pages
that it saves: a slow disk must not take all of them."""

_COPIES_KEPT = 1024
"""For whoever asks for them: nobody does where the engine's metrics are off."""


class JobHooks(NamedTuple):
    """What a catalog does before a job and after it, for each of its chains."""

    plan: Callable[[Sequence[Chain], float], Sequence[TransferPlan | None]]
    """Plans them, given the deadline; None where nothing is to be moved."""

    end: Callable[[Sequence[Chain], Sequence[TransferResult | None]], list[int]]
    """Ends the plans; returns how many leading pages of each chain are good."""


@dataclass(slots=True, eq=False)
class _Job:
    """One job until its lane has reported on it."""

    job_id: JobId
    chains: Sequence[Chain]
    plans: Sequence[TransferPlan | None]
    deadline_s: float
    is_cancelled: bool = False
    is_unheard: bool = False
    """It should have ended long ago, which was noted."""

    @property
    def num_planned(self) -> int:
        """Blocks that the lane moves."""
        return sum(plan.num_blocks for plan in self.plans if plan is not None)


class JobQueue:
    """Loads, or saves, over a lane of their own.

    The plans of a job go to the lane as one. While a tier fails again and again, or does not
    answer, nothing is given to it, but for a trial now and then.

    Thread: any. `_changed` guards the lane, the jobs and their results. It is held while a lane
    copies to or from an engine's pages, and not while a job waits for the disk: of all threads in
    `wait`, one waits for the lane, without the lock, and takes in what it reports, for all. Only
    `idle` waits for the disk under the lock, so that no job begins meanwhile.
    Planning and submitting are one critical section, so that no plan from before a reset reaches
    the lane after it. A catalog's lock is taken under this one, never the other way round.
    """

    def __init__(
        self,
        name: str,
        lane: AsyncLane,
        hooks: JobHooks,
        limit_s: float,
        *,
        max_blocks: int = _MAX_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the lane.

        Args:
            name: "load" or "save", as metrics have it.
            lane: Serves this queue alone.
            hooks: The catalog's, for loads or for saves.
            limit_s: What a job without a deadline may take; 0 for a queue that begins none.
            max_blocks: Of all jobs in flight; a job beyond that is refused, unless it is alone.
            clock: What deadlines are compared with.
        """
        self._name = name
        self._lane = lane
        self._hooks = hooks
        self._limit_s = limit_s
        self._max_blocks = max_blocks
        self._clock = clock
        self._changed = threading.Condition()
        self._jobs: dict[JobId, _Job] = {}
        self._ended: dict[JobId, JobResult] = {}
        self._awaited: set[JobId] = set()
        """What threads are in `wait` for: `poll` leaves it to them."""

        self._is_driven = False
        """A thread waits for the lane, and is the one to poll it."""

        self._counting = threading.Lock()
        """Guards what is counted, so that to ask for it waits for nothing; taken last."""

        self._counters = Counters()
        self._add = partial(_add, self._counting, self._counters)
        subject = "reading from tier ssd" if name == "load" else "writing to tier ssd"
        self._health = Health(subject, self._add)
        self._copies: deque[Copy] = deque(maxlen=_COPIES_KEPT)

    @property
    def is_off(self) -> bool:
        """Whether the tier has failed too often, and only trials are made."""
        return self._health.is_off

    @property
    def may_try(self) -> bool:
        """Whether a job that is submitted now would be given to the tier."""
        return self._limit_s > 0 and self._health.allows(self._clock())

    def submit(self, job_id: JobId, chains: Sequence[Chain], deadline_s: float | None) -> None:
        """Begin a job; one that has nothing to move ends at once."""
        with self._changed:
            now_s = self._clock()
            if self._is_full(chains):
                self._add("ssd_busy_blocks", _num_pages(chains))
                self.report(job_id, [Status.BUSY] * _num_pages(chains))
                return
            deadline_s = now_s + self._limit_s if deadline_s is None else deadline_s
            plans: Sequence[TransferPlan | None] = [None] * len(chains)
            if self.may_try:
                plans = self._hooks.plan(chains, deadline_s)
            job = _Job(job_id, chains, plans, deadline_s)
            plan = _join(job_id, plans)
            if plan is None:
                self._end(job, [None] * len(chains))
            else:
                self._health.begin(now_s)
                self._lane.submit(plan)
                self._jobs[job_id] = job

    def report(self, job_id: JobId, statuses: list[Status]) -> None:
        """Let a job end that is not to be begun."""
        with self._changed:
            self._ended[job_id] = JobResult(job_id, statuses)

    def poll(self) -> list[JobResult]:
        """Return jobs that have ended and that no thread waits for. Never waits for a disk."""
        if not self._changed.acquire(blocking=False):
            return []  # a thread copies, or reads a log to plan: what has ended is returned later
        try:
            if not self._is_driven:  # else the thread that waits for the lane polls it
                self._take_in(self._lane.poll())
            return [self._ended.pop(job_id) for job_id in self._ended.keys() - self._awaited]
        finally:
            self._changed.release()

    def wait(self, job_id: JobId) -> JobResult:
        """Wait until a job has ended.

        Raises:
            LeaseError: It was reported before, or there was no such job.
        """
        with self._changed:
            self._awaited.add(job_id)
            try:
                while job_id in self._jobs:
                    self._wait_once()
            finally:
                self._awaited.discard(job_id)
            if job_id not in self._ended:
                msg = f"job {job_id} was reported before: wait for a job or poll it, not both"
                raise LeaseError(msg)
            return self._ended.pop(job_id)

    def cancel(self, job_id: JobId) -> None:
        """Begin nothing more of a job, if it is under way."""
        with self._changed:
            if job_id in self._jobs:
                self._jobs[job_id].is_cancelled = True
                self._lane.cancel(job_id)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Let the jobs under way end, and no other begin.

        Raises:
            TierError: One does not end; a disk that hangs must not hang the engine's scheduler.
        """
        limit_s = self._limit_s + _GRACE_S
        with ExitStack() as stack:
            is_held = self._changed.acquire(timeout=limit_s)
            if is_held:
                stack.callback(self._changed.release)
            if not (is_held and self._lane.drain(limit_s)):
                msg = (
                    f"a {self._name} has not ended after {limit_s:.0f} s, and nothing was "
                    "forgotten: if the weights have changed, delete the files of this model, which "
                    "`flexkv ls` shows, before the next start"
                )
                raise TierError("ssd", msg)
            self._take_in(self._lane.poll())
            yield

    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""
        with self._counting:
            return self._counters.drain()

    def take_copies(self) -> list[Copy]:
        """Return the jobs that have moved something since the last call of this."""
        with self._counting:
            copies = list(self._copies)
            self._copies.clear()
        return copies

    def close(self) -> None:
        """Close the lane; within `idle`."""
        self._lane.close()

    def _wait_once(self) -> None:
        """Wait until something has ended: one thread for the lane, and all others for that one."""
        if self._is_driven:
            self._changed.wait()
        else:
            with self._driving():
                self._lane.wait(_REPOLL_S)
            self._take_in(self._lane.poll())

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """Release the lock, and be the one that waits for the lane."""
        self._is_driven = True
        self._changed.release()
        try:
            yield
        finally:
            self._changed.acquire()
            self._is_driven = False
            self._changed.notify_all()  # they run once this thread has polled, and releases it

    def _is_full(self, chains: Sequence[Chain]) -> bool:
        if not self._jobs:
            return False
        num_open = sum(_num_pages(job.chains) for job in self._jobs.values())
        return num_open + _num_pages(chains) > self._max_blocks

    def _note_silence(self) -> None:
        """Note jobs that should have ended: all that there was to hear has been taken in."""
        now_s = self._clock()
        for job in self._jobs.values():
            if now_s > job.deadline_s + _GRACE_S and not job.is_unheard:
                job.is_unheard = True
                self._health.note_silence(now_s)

    def _take_in(self, results: Sequence[TransferResult]) -> None:
        with ExitStack() as all_of_them:  # though one should raise: other threads wait for the rest
            all_of_them.callback(self._note_silence)
            for result in reversed(results):  # run in their order: the last one first
                all_of_them.callback(self._take_in_one, result)

    def _take_in_one(self, result: TransferResult) -> None:
        job = self._jobs.pop(result.job_id)
        self.report(job.job_id, [Status.ERROR] * _num_pages(job.chains))  # if what follows raises
        if not (job.is_cancelled and result.status is Status.TIMEOUT):
            self._health.note(result.status, self._clock())
        self._count(job, result)
        self._end(job, _split(job, result))

    def _end(self, job: _Job, results: Sequence[TransferResult | None]) -> None:
        """Let the catalog take in how the plans ended, and say so key by key."""
        statuses: list[Status] = []
        num_good = self._hooks.end(job.chains, results)
        for chain, result, good in zip(job.chains, results, num_good, strict=True):
            is_bad = result is not None and result.status is not Status.OK
            failure = result.status if result is not None and is_bad else Status.MISS
            statuses += [Status.OK] * good + [failure] * (len(chain.page_ids) - good)
        self.report(job.job_id, statuses)

    def _count(self, job: _Job, result: TransferResult) -> None:
        is_given_up = job.is_cancelled and result.status is Status.TIMEOUT
        num_lost = 0 if is_given_up else job.num_planned - result.num_blocks
        with self._counting:
            self._counters.add(f"{self._name}_bytes", result.num_bytes)
            self._counters.add(f"{self._name}_seconds", result.seconds)
            is_busy = result.status is Status.BUSY
            lost = "ssd_busy_blocks" if is_busy else f"{self._name}_failed_blocks"
            self._counters.add(lost, num_lost)
            if result.num_blocks:
                self._copies.append(Copy(result.num_blocks, result.num_bytes, result.seconds))


def _add(lock: threading.Lock, counters: Counters, name: str, value: float = 1) -> None:
    """Count. No method: a queue that refers to itself keeps its lane's memory after its end."""
    with lock:
        counters.add(name, value)


def _num_pages(chains: Sequence[Chain]) -> int:
    return sum(len(chain.page_ids) for chain in chains)


def _join(job_id: JobId, plans: Sequence[TransferPlan | None]) -> TransferPlan | None:
    """Return one plan for all, under the job's id; `_split` finds the way back to each.

    The blocks of several plans stand alone in it, without parents: chains are saved one by one.
    """
    given = list(filter(None, plans))
    assert len(given) <= 1 or all(_may_stand_alone(plan) for plan in given)
    if not given:
        return None
    first, *others = given
    if not others:
        return msgspec.structs.replace(first, job_id=job_id)
    return msgspec.structs.replace(
        first,
        job_id=job_id,
        source=_together([plan.source for plan in given]),
        target=_together([plan.target for plan in given]),
        num_blocks=sum(plan.num_blocks for plan in given),
    )


def _may_stand_alone(plan: TransferPlan) -> bool:
    return plan.num_blocks == 1 or isinstance(plan.source, StoredBlocks)


def _together(places: Sequence[Endpoint]) -> Endpoint:
    ids = [page for place in places if isinstance(place, EnginePages) for page in place.page_ids]
    if ids:
        return EnginePages(ids)
    stored = [place for place in places if isinstance(place, StoredBlocks)]
    keys = [key for place in stored for key in place.keys]
    return StoredBlocks(stored[0].tier, keys, is_chain=False)


def _split(job: _Job, result: TransferResult) -> list[TransferResult | None]:
    """Return how each plan of a job ended."""
    statuses = iter(statuses_of(result, job.num_planned))
    results: list[TransferResult | None] = []
    for plan in job.plans:
        if plan is None:
            results.append(None)
        else:
            of_plan = list(islice(statuses, plan.num_blocks))
            results.append(ended(plan, result.rank, of_plan, is_chain=True))
    return results
