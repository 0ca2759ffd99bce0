"""One rank's blocks of one kind: looked up by key, and moved to and from an engine's pages."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.blocks import Access, Blocks, Copies, JobResult
from flexkv_core.block_store.catalog import Catalog, FollowerCatalog
from flexkv_core.block_store.job_queue import JobHooks, JobQueue
from flexkv_core.block_store.writer_catalog import WriterCatalog
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.events import EventLog
from flexkv_core.plan import Status

__all__ = ["BlockStore", "open_follower", "open_writer"]

_SAVE_LIMIT_S = 60.0


class BlockStore:
    """Loads and saves are jobs: submitted, and reported once, by `wait` or by `poll`.

    An engine that may wait does so (`wait`); one whose scheduler must not calls `poll` from time
    to time. Whatever happens to a job, it is reported with a status for each of its keys. A page
    whose status is not OK is not to be used.

    Thread: any; `resize` one at a time.

    Locking: loads have a lock, saves have one (`JobQueue._changed`), and so does the catalog. They
    are taken in this order. A job takes its queue's lock and, inside it, the catalog's to plan and
    to end; `lookup` takes the catalog's alone, and so does `submit_load` before its queue's: what
    leaves in between is a miss. Neither queue's lock is held while a thread waits
    for the disk, so a load that hangs keeps nobody from a save, a `lookup` or another load. Only
    `reset` and `close` hold both while jobs end, and they give up on a disk that hangs.
    """

    def __init__(
        self, catalog: Catalog, loads: JobQueue, saves: JobQueue | None, access: Access
    ) -> None:
        """Take over the parts; see `open_writer` and `open_follower`.

        Args:
            catalog: Knows which blocks are there.
            loads: The jobs that fill pages.
            saves: Those that store pages; None where another rank does.
            access: What the blocks need to be of use.
        """
        self._catalog = catalog
        self._loads = loads
        self._saves = saves
        self._access = access
        self._load_ids = map(JobId, itertools.count(2, 2))
        self._save_ids = map(JobId, itertools.count(1, 2))  # odd: an id says whose job it is

    def lookup(self, keys: Sequence[BlockKey], before: Sequence[BlockKey] = ()) -> list[bool]:
        """Tell for each key whether its block can be loaded; `before` as in `Blocks`.

        Of a chain, those can that are there without a gap behind `before`, which need not be there
        itself: the engine has it. While reading is switched off, none can.
        """
        if not self._loads.may_try:
            return [False] * len(keys)
        if self._access is Access.SINGLE:
            return self._catalog.find_single(keys)
        num_found = self._catalog.count_found([*before, *keys], len(before))
        return [position < num_found for position in range(len(keys))]

    def submit_load(self, blocks: Blocks, deadline_s: float | None = None) -> JobId:
        """Begin to fill pages with what there is of `blocks`.

        If too much is in flight, the job is refused: all its keys end with BUSY.

        Args:
            blocks: What goes where.
            deadline_s: On the store's clock: what has not come by then is reported as TIMEOUT.
                None for the store's own limit.
        """
        job_id = next(self._load_ids)
        chains = self._catalog.cut(self._access.chains_of(blocks))
        self._loads.submit(job_id, chains, deadline_s)
        return job_id

    def submit_save(self, blocks: Blocks, deadline_s: float | None = None) -> JobId:
        """Begin to store pages as `blocks`; arguments as in `submit_load`.

        The pages must stay as they are until the job is reported. Where another rank writes, that
        rank is asked for the same blocks, and here all of them count as stored.
        """
        if self._saves is None:
            job_id = next(self._load_ids)
            self._loads.report(job_id, [Status.OK] * len(blocks.keys))
        else:
            job_id = next(self._save_ids)
            self._saves.submit(job_id, self._access.chains_of(blocks), deadline_s)
        return job_id

    def poll(self) -> list[JobResult]:
        """Return jobs that have ended and that no thread waits for. Never waits for a disk."""
        return [result for queue in self._queues for result in queue.poll()]

    def wait(self, job_id: JobId) -> JobResult:
        """Wait until a job has ended.

        Raises:
            LeaseError: It was reported before.
        """
        return self._queue_of(job_id).wait(job_id)

    def cancel(self, job_id: JobId) -> None:
        """Begin nothing more of a job, if it is under way; it is reported all the same."""
        self._queue_of(job_id).cancel(job_id)

    def resize(self, quota_bytes: int) -> None:
        """Use no more than `quota_bytes` from here on."""
        self._catalog.resize(quota_bytes)

    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; see `SsdTier.begin_generation`.

        Raises:
            TierError: A job does not end; nothing is forgotten.
        """
        with self._all_idle():
            self._catalog.reset(keeps_name=keeps_name)

    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""
        counts = {"ssd_off": float(any(queue.is_off for queue in self._queues))}
        for queue in self._queues:
            counts |= queue.take_counts()
        return counts | self._catalog.take_counts()

    def take_copies(self) -> Copies:
        """Return what jobs have moved since the last call of this."""
        return Copies(
            self._loads.take_copies(), [] if self._saves is None else self._saves.take_copies()
        )

    def wait_restored(self) -> None:
        """Wait until all that earlier processes left can be found."""
        self._catalog.wait_restored()

    def close(self) -> None:
        """Let go of the files; jobs under way end first. A second call does nothing.

        Raises:
            TierError: A job does not end; it keeps the files.
        """
        with self._all_idle():
            for queue in self._queues:
                queue.close()
            self._catalog.close()

    @property
    def _queues(self) -> list[JobQueue]:
        """The queues, in the order in which their locks are taken."""
        return [self._loads] if self._saves is None else [self._loads, self._saves]

    def _queue_of(self, job_id: JobId) -> JobQueue:
        return self._saves if self._saves is not None and job_id % 2 else self._loads

    def _all_idle(self) -> ExitStack:
        with ExitStack() as stack:
            for queue in self._queues:
                stack.enter_context(queue.idle())
            return stack.pop_all()


def open_writer(
    tier: SsdTier,
    lanes: tuple[AsyncLane, AsyncLane],
    *,
    access: Access,
    eviction_policy: str,
    load_limit_s: float,
    events: EventLog | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BlockStore:
    """Open the store of a rank that writes its blocks; take over the tier and the lanes.

    Args:
        tier: The files.
        lanes: One to load, one to save.
        access: What the blocks need to be of use.
        eviction_policy: Which blocks leave first.
        load_limit_s: How long a load may take that has no deadline of its own.
        events: Where it is logged what is written and what leaves.
        clock: Of deadlines.
    """
    load_lane, save_lane = lanes
    catalog = WriterCatalog(tier, eviction_policy=eviction_policy, events=events)
    hooks = JobHooks(catalog.plan_saves, catalog.end_saves)
    saves = JobQueue("save", save_lane, hooks, _SAVE_LIMIT_S, clock=clock)
    return BlockStore(catalog, _loads(catalog, load_lane, load_limit_s, clock), saves, access)


def open_follower(
    tier: Follower,
    lane: AsyncLane,
    *,
    access: Access,
    load_limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> BlockStore:
    """Open the store of a rank that reads what another writes; take over the tier and the lane."""
    catalog = FollowerCatalog(tier)
    return BlockStore(catalog, _loads(catalog, lane, load_limit_s, clock), None, access)


def _loads(
    catalog: Catalog, lane: AsyncLane, limit_s: float, clock: Callable[[], float]
) -> JobQueue:
    hooks = JobHooks(catalog.plan_loads, catalog.end_loads)
    return JobQueue("load", lane, hooks, limit_s, clock=clock)
