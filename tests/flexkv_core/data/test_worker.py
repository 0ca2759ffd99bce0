"""The worker: which lane gets a plan, who writes, and that nothing is told twice."""

import pytest

from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.results import done
from flexkv_core.data.worker import HOST, PAGES, CacheWorker, Route
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.doubles import ManualClock

SLOT = HostSlots(bytes(8))
PAGE = EnginePages([0])
SSD = StoredBlocks("ssd", [bytes(32)])
REMOTE = StoredBlocks("remote", [bytes(32)])


class InstantLane(Lane):
    """Moves nothing and says it did; waits as long as it is told to."""

    def __init__(self, clock=None, drain_s=0.0):
        self.plans, self.timeouts, self.is_closed = [], [], False
        self._results = []
        self._clock, self._drain_s = clock, drain_s

    def submit(self, plan):
        self.plans.append(plan)
        self._results.append(done(plan, 0, 0, 0.0))

    def poll(self):
        results, self._results = self._results, []
        return results

    def drain(self, timeout_s):
        self.timeouts.append(timeout_s)
        if self._clock:
            self._clock.advance(min(timeout_s, self._drain_s))
        return self._drain_s <= timeout_s

    def close(self):
        self.is_closed = True


def plan(source, target, job_id=1, **changes):
    return TransferPlan(job_id=job_id, source=source, target=target, num_blocks=1, **changes)


ROUTES = {
    (PAGES, HOST): (PAGE, SLOT),
    (HOST, PAGES): (SLOT, PAGE),
    (HOST, "ssd"): (SLOT, SSD),
    ("ssd", HOST): (SSD, SLOT),
    ("remote", HOST): (REMOTE, SLOT),
    ("ssd", PAGES): (SSD, PAGE),
}


@pytest.mark.parametrize("ends", ROUTES)
def test_a_plan_goes_to_the_lane_of_its_route_alone(ends):
    lanes = {Route(*route): InstantLane() for route in ROUTES}
    wanted = plan(*ROUTES[ends])
    CacheWorker(0, lanes).submit([wanted])
    assert {tuple(route[:2]): lane.plans for route, lane in lanes.items() if lane.plans} == {
        ends: [wanted]
    }


def test_a_plan_that_nobody_can_execute_is_an_error_with_its_job_and_epoch():
    worker = CacheWorker(5, {})
    worker.submit([plan(SSD, SLOT, job_id=9, epoch=2)])
    (result,) = worker.poll()
    assert (result.job_id, result.epoch, result.rank, result.status) == (9, 2, 5, Status.ERROR)
    assert result.error == "rank 5 has no lane from ssd to host"


def test_a_lane_of_two_routes_is_asked_for_results_once():
    lane = InstantLane()
    worker = CacheWorker(0, {Route(PAGES, HOST): lane, Route(HOST, PAGES): lane})
    worker.submit([plan(PAGE, SLOT, job_id=1), plan(SLOT, PAGE, job_id=2)])
    worker.drain(0)
    assert [result.job_id for result in worker.poll()] == [1, 2]
    assert len(lane.timeouts) == 1


def test_a_lane_gets_its_plans_of_one_step_together(monkeypatch):
    lanes = {Route(PAGES, HOST): InstantLane(), Route(HOST, "ssd"): InstantLane()}
    given = []
    for lane in lanes.values():
        monkeypatch.setattr(lane, "submit_all", given.append)
    ends = [(PAGE, SLOT), (SLOT, SSD), (PAGE, SLOT)]
    CacheWorker(0, lanes).submit(plan(*pair, job_id=job) for job, pair in enumerate(ends))
    assert [[plan.job_id for plan in plans] for plans in given] == [[0, 2], [1]]


def test_a_result_is_told_once():
    worker = CacheWorker(0, {Route(PAGES, HOST): InstantLane()})
    worker.submit([plan(PAGE, SLOT), plan(SSD, SLOT, job_id=2)])
    assert sorted(result.job_id for result in worker.poll()) == [1, 2]
    assert worker.poll() == []


@pytest.mark.parametrize("ends", [ends for ends in ROUTES if ends[1] != PAGES])
def test_a_rank_that_is_not_the_owner_writes_nothing_into_our_tiers_and_reports_nothing(ends):
    lane = InstantLane()
    worker = CacheWorker(1, {Route(*ends): lane}, is_owner=False)
    worker.submit([plan(*ROUTES[ends])])
    assert (lane.plans, worker.poll()) == ([], [])


@pytest.mark.parametrize("ends", [ends for ends in ROUTES if ends[1] == PAGES])
def test_a_rank_that_is_not_the_owner_loads_its_own_pages(ends):
    worker = CacheWorker(1, {Route(*ends): InstantLane()}, is_owner=False)
    worker.submit([plan(*ROUTES[ends])])
    assert [result.status for result in worker.poll()] == [Status.OK]


def two_lanes(clock, first_s, second_s):
    return {
        Route(PAGES, HOST): InstantLane(clock, first_s),
        Route(HOST, "ssd"): InstantLane(clock, second_s),
    }


def test_lanes_share_one_time_to_drain():
    clock = ManualClock()
    lanes = two_lanes(clock, 3.0, 0.0)
    assert CacheWorker(0, lanes, clock=clock).drain(4.0)
    assert [lane.timeouts for lane in lanes.values()] == [[4.0], [1.0]]


@pytest.mark.parametrize("seconds", [(5.0, 0.0), (0.0, 5.0)])
def test_one_lane_that_is_not_drained_is_enough_to_say_so(seconds):
    clock = ManualClock()
    lanes = two_lanes(clock, *seconds)
    assert not CacheWorker(0, lanes, clock=clock).drain(4.0)
    assert all(len(lane.timeouts) == 1 for lane in lanes.values())


@pytest.mark.parametrize(("drain_s", "ended"), [(1.0, True), (9.0, False)])
def test_shutdown_closes_every_lane_and_says_whether_all_had_ended(drain_s, ended):
    clock = ManualClock()
    lanes = two_lanes(clock, drain_s, 0.0)
    worker = CacheWorker(0, lanes, clock=clock)
    assert worker.shutdown(4.0) is ended
    assert all(lane.is_closed for lane in lanes.values())


def test_a_last_poll_after_shutdown_tells_what_is_left():
    worker = CacheWorker(0, {Route(PAGES, HOST): InstantLane()})
    worker.submit([plan(PAGE, SLOT)])
    worker.shutdown(0)
    assert [result.job_id for result in worker.poll()] == [1]
