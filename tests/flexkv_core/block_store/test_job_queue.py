"""One direction of a store, over a lane that does as it is told."""

import pytest

from flexkv_core.block_store import direction as direction_module
from flexkv_core.block_store.block_store import Copy
from flexkv_core.block_store.direction import Direction
from flexkv_core.control.hierarchy.health import Health
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.errors import TierError
from flexkv_core.plan import EnginePages, Status, StoredBlocks, TransferPlan, TransferResult
from flexkv_core.testing.doubles import ManualClock

BLOCK_BYTES = 10


class ToldLane(Lane):
    """Ends plans when it is drained, each as its job's number says, and takes a second for all."""

    def __init__(self, clock):
        self.clock, self.submitted, self.ended = clock, [], []
        self.statuses, self.is_closed = {}, False

    def submit(self, plan):
        self.submitted.append(plan)

    def poll(self):
        ended, self.ended = self.ended, []
        return ended

    def drain(self, timeout_s):
        self.clock.advance(1)
        self.ended += map(self._result, self.submitted)
        self.submitted = []
        return True

    def close(self):
        self.is_closed = True

    def _result(self, plan):
        status = self.statuses.get(plan.job_id, Status.OK)
        num_blocks = plan.num_blocks if status is Status.OK else plan.num_blocks - 1
        return TransferResult(
            job_id=plan.job_id,
            rank=0,
            status=status,
            num_blocks=num_blocks,
            num_bytes=num_blocks * BLOCK_BYTES,
        )


def plan(job_id, num_blocks=2):
    keys = [bytes([number]) * 32 for number in range(num_blocks)]
    return TransferPlan(
        job_id=job_id,
        source=StoredBlocks("ssd", keys),
        target=EnginePages(list(range(num_blocks))),
        num_blocks=num_blocks,
    )


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def lane(clock):
    return ToldLane(clock)


@pytest.fixture
def loads(lane, clock):
    return Direction("load", lane, Health("reading"), 5.0, clock)


def run(direction, *plans):
    with direction.attempt() as is_allowed:
        return direction.run(plans) if is_allowed else None


def test_plans_of_one_call_are_under_way_together_and_each_has_its_result(loads):
    assert {result.job_id for result in run(loads, plan(1), plan(2))} == {1, 2}
    [copy] = loads.take_copies()
    assert copy == Copy(num_blocks=4, num_bytes=4 * BLOCK_BYTES, seconds=1)
    assert loads.take_copies() == []


def test_what_was_moved_and_what_was_lost_is_counted_once(loads, lane):
    lane.statuses[2] = Status.CORRUPT
    run(loads, plan(1), plan(2))
    counts = {"load_bytes": 3 * BLOCK_BYTES, "load_seconds": 1, "load_failed_blocks": 1}
    assert loads.take_counts() == counts
    assert loads.take_counts() == {}


def test_a_call_without_plans_says_nothing_about_the_tier(loads, lane):
    assert run(loads) == []
    assert (loads.take_counts(), loads.take_copies()) == ({}, [])


@pytest.mark.parametrize(
    ("status", "is_off"),
    [(Status.ERROR, True), (Status.TIMEOUT, True), (Status.CORRUPT, False), (Status.MISS, False)],
)
def test_calls_that_fail_again_and_again_are_not_begun_any_more(loads, lane, status, is_off):
    lane.statuses[1] = status
    for _ in range(3):
        run(loads, plan(1))
    assert loads.is_off is is_off
    assert (run(loads, plan(1)) is None) is is_off


def test_a_deadline_is_the_limit_from_now(loads, clock):
    assert loads.deadline_s == clock() + 5


def test_a_call_that_does_not_end_is_not_waited_for(lane, clock, monkeypatch):
    monkeypatch.setattr(direction_module, "_PATIENCE_S", 0.0)
    saves = Direction("save", lane, Health("writing"), 0.0, clock)
    with saves.attempt(), pytest.raises(TierError, match="a save does not end"), saves.idle():
        pass
    with saves.idle():
        saves.close()
    assert lane.is_closed


def test_a_limit_of_nothing_does_not_make_a_call_that_ends_a_failure(lane, clock):
    saves = Direction("save", lane, Health("writing"), 0.0, clock)
    with saves.idle():
        pass
    assert run(saves, plan(1))[0].status is Status.OK
