"""The jobs of one direction, over a lane that ends them as a test says."""

import threading

import pytest

from flexkv_core.block_store import job_queue as job_queue_module
from flexkv_core.block_store.blocks import Access, Blocks, Copy
from flexkv_core.block_store.job_queue import JobHooks, JobQueue
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.data.transfer.results import ended
from flexkv_core.errors import LeaseError, TierError
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import ManualClock

BLOCK_BYTES = 10
SECONDS = 0.25
"""What the lane takes for a plan, as it reports."""


class ScriptedLane(AsyncLane):
    """Ends plans when it is waited for, each as its job's number says; that takes a second for all.

    Of a plan that does not end well, the last block is bad.
    """

    def __init__(self, clock):
        self.clock, self.submitted, self.results = clock, [], []
        self.statuses, self.cancelled, self.is_closed, self.hangs = {}, [], False, False

    def submit(self, plan):
        self.submitted.append(plan)

    def poll(self):
        results, self.results = self.results, []
        return results

    def wait(self, timeout_s):
        self.drain(timeout_s)

    def drain(self, timeout_s):
        if self.hangs:
            return False
        self.clock.advance(1)
        self.results += map(self._result, self.submitted)
        self.submitted = []
        return True

    def cancel(self, job_id):
        self.cancelled.append(job_id)

    def close(self):
        self.is_closed = True

    def _result(self, plan):
        status = self.statuses.get(plan.job_id, Status.OK)
        statuses = [Status.OK] * (plan.num_blocks - 1) + [status]
        is_chain = plan.source.is_chain
        return ended(plan, 0, statuses, is_chain=is_chain, block_bytes=BLOCK_BYTES, seconds=SECONDS)


class ScriptedCatalog:
    """Has all blocks, but for those that a test takes away."""

    def __init__(self):
        self.missing, self.job_ids, self.deadlines = set(), iter(range(100, 200)), []

    def plan(self, chains, deadline_s):
        self.deadlines.append(deadline_s)
        return [self._plan(chain) for chain in chains]

    def end(self, _, results):
        return [0 if result is None else result.num_blocks for result in results]

    def _plan(self, chain):
        keys = [key for key in chain.keys[chain.first_block :] if key not in self.missing]
        if not keys:
            return None
        pages = EnginePages(chain.page_ids[: len(keys)])
        return TransferPlan(
            job_id=next(self.job_ids),
            source=StoredBlocks("ssd", keys),
            target=pages,
            num_blocks=len(keys),
        )


def chains(num_blocks=2, access=Access.CHAIN):
    keys = [bytes([number]) * 32 for number in range(num_blocks)]
    return access.chains_of(Blocks(keys, range(num_blocks)))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def lane(clock):
    return ScriptedLane(clock)


@pytest.fixture
def catalog():
    return ScriptedCatalog()


@pytest.fixture
def start(lane, catalog, clock):
    def start(name="load", limit_s=5.0, **options):
        return JobQueue(
            name, lane, JobHooks(catalog.plan, catalog.end), limit_s, clock=clock, **options
        )

    return start


@pytest.fixture
def loads(start):
    return start()


def run(queue, job_id, num_blocks=2, access=Access.CHAIN):
    queue.submit(job_id, chains(num_blocks, access), None)
    return queue.wait(job_id).statuses


def test_jobs_are_under_way_together_and_each_has_its_result(loads):
    loads.submit(1, chains(2), None)
    loads.submit(2, chains(3), None)
    assert loads.wait(2) == (2, [Status.OK] * 3)
    assert loads.poll() == [(1, [Status.OK] * 2)]
    copies = [Copy(2, 2 * BLOCK_BYTES, SECONDS), Copy(3, 3 * BLOCK_BYTES, SECONDS)]
    assert sorted(loads.take_copies()) == copies
    assert loads.take_copies() == []


def test_blocks_that_stand_alone_go_to_the_lane_in_one_plan(loads, lane, catalog):
    catalog.missing = {bytes([1]) * 32}
    lane.statuses[7] = Status.CORRUPT
    loads.submit(7, chains(4, Access.SINGLE), None)
    (plan,) = lane.submitted
    assert (plan.num_blocks, plan.source.is_chain, plan.target.page_ids) == (3, False, [0, 2, 3])
    ok, miss = Status.OK, Status.MISS
    assert loads.wait(7).statuses == [ok, miss, ok, Status.CORRUPT]


def test_what_was_moved_and_what_was_lost_is_counted_once(loads, lane):
    lane.statuses[2] = Status.CORRUPT
    run(loads, 1)
    run(loads, 2)
    seconds = 2 * SECONDS
    counts = {"load_bytes": 3 * BLOCK_BYTES, "load_seconds": seconds, "load_failed_blocks": 1}
    assert loads.take_counts() == counts
    assert loads.take_counts() == {}


def test_a_job_without_anything_to_move_ends_at_once_and_says_nothing_about_the_tier(
    loads, catalog
):
    catalog.missing = {bytes([number]) * 32 for number in range(2)}
    loads.submit(1, chains(2), None)
    assert loads.poll() == [(1, [Status.MISS] * 2)]
    assert (loads.take_counts(), loads.take_copies()) == ({}, [])


@pytest.mark.parametrize(
    ("status", "is_off"),
    [
        (Status.ERROR, True),
        (Status.TIMEOUT, True),
        (Status.CORRUPT, False),
        (Status.MISS, False),
        (Status.BUSY, False),
    ],
)
def test_a_tier_that_fails_again_and_again_is_left_alone(loads, lane, status, is_off):
    for job_id in range(1, 4):
        lane.statuses[job_id] = status
        run(loads, job_id)
    assert (loads.is_off, loads.may_try) == (is_off, not is_off)
    loads.submit(4, chains(), None)
    assert bool(lane.submitted) is not is_off


def test_a_tier_that_was_left_alone_is_tried_again(loads, lane, clock):
    lane.statuses = dict.fromkeys(range(1, 4), Status.ERROR)
    for job_id in range(1, 4):
        run(loads, job_id)
    clock.advance(31)
    assert loads.may_try
    assert run(loads, 4) == [Status.OK] * 2
    assert not loads.is_off


def test_a_deadline_is_the_callers_or_the_limit_from_now(loads, catalog, clock):
    loads.submit(1, chains(), None)
    loads.submit(2, chains(), 2000.0)
    assert catalog.deadlines == [clock() + 5, 2000.0]


def test_what_a_bounded_queue_has_no_room_for_is_refused_at_once(start, lane):
    saves = start("save", max_blocks=4)
    saves.submit(1, chains(10), None)  # alone, a job of any size may begin
    saves.submit(2, chains(1), None)
    assert saves.poll() == [(2, [Status.BUSY])]
    assert saves.take_counts() == {"ssd_busy_blocks": 1}
    assert saves.wait(1).statuses == [Status.OK] * 10
    saves.submit(3, chains(2), None)
    saves.submit(4, chains(2), None)
    assert saves.poll() == []
    assert not saves.is_off


def test_a_cancelled_job_is_reported_and_is_no_failure_of_the_tier(loads, lane):
    for job_id in range(1, 5):
        lane.statuses[job_id] = Status.TIMEOUT
        loads.submit(job_id, chains(), None)
        loads.cancel(job_id)
        assert loads.wait(job_id).statuses == [Status.OK, Status.TIMEOUT]
    assert lane.cancelled == [1, 2, 3, 4]
    assert not loads.is_off
    assert "load_failed_blocks" not in loads.take_counts()


def test_a_failure_counts_although_its_job_was_cancelled(loads, lane):
    for job_id in range(1, 4):
        lane.statuses[job_id] = Status.ERROR
        loads.submit(job_id, chains(), None)
        loads.cancel(job_id)
        loads.wait(job_id)
    assert loads.is_off
    assert loads.take_counts()["load_failed_blocks"] == 3


def test_a_trial_that_succeeds_counts_although_it_was_cancelled(loads, lane, clock):
    lane.statuses = dict.fromkeys(range(1, 4), Status.ERROR)
    for job_id in range(1, 4):
        run(loads, job_id)
    clock.advance(60)
    loads.submit(4, chains(), None)
    loads.cancel(4)
    loads.wait(4)
    assert not loads.is_off


def test_an_error_while_one_job_is_taken_in_strands_no_other(loads, catalog, monkeypatch):
    """Whoever waits gets an answer, and whoever takes in gets the error."""
    loads.submit(1, chains(), None)
    loads.submit(2, chains(), None)
    ends = iter([MemoryError])

    def end(chains, results):
        if error := next(ends, None):
            raise error
        return [result.num_blocks for result in results]

    monkeypatch.setattr(loads, "_hooks", JobHooks(catalog.plan, end))
    with pytest.raises(MemoryError):
        loads.wait(1)
    assert sorted(loads.poll()) == [(1, [Status.ERROR] * 2), (2, [Status.OK] * 2)]


def test_a_lane_that_raises_leaves_no_job_that_never_ends(loads, lane, monkeypatch):
    monkeypatch.setattr(lane, "submit", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loads.submit(1, chains(), None)
    with pytest.raises(LeaseError):
        loads.wait(1)


def test_whoever_plans_and_hangs_keeps_nobody_for_ever(loads, catalog, monkeypatch):
    """A follower reads a log to plan, from a disk that may hang."""
    monkeypatch.setattr(job_queue_module, "_GRACE_S", -5.0)
    gate, entered = threading.Event(), threading.Event()

    def plan(chains, deadline_s):
        entered.set()
        gate.wait(30)
        return [None] * len(chains)

    monkeypatch.setattr(loads, "_hooks", JobHooks(plan, catalog.end))
    thread = threading.Thread(target=loads.submit, args=(1, chains(), None))
    thread.start()
    assert entered.wait(30)
    assert loads.poll() == []
    with pytest.raises(TierError, match="has not ended"), loads.idle():
        pass
    assert loads.take_counts() == {}
    gate.set()
    thread.join(30)


def test_to_cancel_what_has_ended_changes_nothing(loads, lane):
    loads.submit(1, chains(), None)
    lane.drain(0)
    (result,) = loads.poll()
    loads.cancel(1)
    assert (lane.cancelled, loads.poll(), result.job_id) == ([], [], 1)


def test_a_job_is_reported_once(loads):
    run(loads, 1)
    assert loads.poll() == []
    with pytest.raises(LeaseError, match="job 1 was reported before"):
        loads.wait(1)


def test_a_job_that_does_not_end_is_not_waited_for(start, lane):
    saves = start("save")
    lane.hangs = True
    with pytest.raises(TierError, match="a save has not ended"), saves.idle():
        pass
    lane.hangs = False
    with saves.idle():
        saves.close()
    assert lane.is_closed


def test_what_ends_while_others_want_quiet_is_reported_afterwards(loads):
    loads.submit(1, chains(), None)
    with loads.idle():
        pass
    assert loads.poll() == [(1, [Status.OK] * 2)]


def test_what_a_lane_refuses_because_it_is_busy_is_no_failure_and_counts_by_itself(loads, lane):
    for job_id in range(1, 5):
        lane.statuses[job_id] = Status.BUSY
        assert run(loads, job_id) == [Status.OK, Status.BUSY]
    counts = loads.take_counts()
    assert (counts["ssd_busy_blocks"], "load_failed_blocks" in counts) == (4, False)
    assert loads.may_try


def test_a_lane_that_has_closed_is_given_nothing_more(loads, lane, clock):
    lane.statuses[1] = Status.CLOSED
    run(loads, 1)
    clock.advance(1000)
    assert not loads.may_try
    assert loads.take_counts()["ssd_closed"] == 1


def test_a_queue_without_any_time_begins_nothing_and_says_so(start, lane):
    """An option of 0 seconds means that nothing is read: once, that switched reading off."""
    loads = start(limit_s=0.0)
    assert not loads.may_try
    for job_id in range(1, 5):
        loads.submit(job_id, chains(), None)
        assert loads.poll() == [(job_id, [Status.MISS] * 2)]
    assert lane.submitted == []
    assert not loads.is_off


@pytest.fixture
def hanging(loads, lane, clock):
    """A job that its lane does not end, though its time is over."""
    lane.hangs = True
    loads.submit(1, chains(), None)
    clock.advance(16)


def test_a_job_that_should_have_ended_long_ago_leaves_the_tier_alone(loads, hanging, caplog):
    assert loads.poll() == []
    assert not loads.may_try
    assert loads.take_counts() == {"ssd_unheard": 1}
    assert "tier.off state=unheard: reading from tier ssd" in caplog.text


def test_one_job_that_hangs_is_one_silence(loads, lane, hanging, clock):
    """Others may be done meanwhile."""
    loads.poll()
    clock.advance(30)
    lane.hangs, hung, lane.submitted = False, lane.submitted, []
    assert run(loads, 2) == [Status.OK] * 2
    assert hung
    loads.poll()
    assert not loads.is_off


def test_what_has_ended_while_nobody_asked_is_no_silence(loads, lane, clock):
    loads.submit(1, chains(), None)
    lane.drain(0)
    clock.advance(1000)
    assert loads.poll() == [(1, [Status.OK] * 2)]
    assert not loads.is_off


def test_a_short_limit_does_not_make_a_job_that_ends_a_failure(start, monkeypatch):
    monkeypatch.setattr(job_queue_module, "_GRACE_S", 0.0)
    saves = start("save", limit_s=1e-9)
    with saves.idle():
        pass
    assert run(saves, 1) == [Status.OK] * 2
