"""The contract of `Lane` as a test class: inherit it and say how to make a lane and its plans.

class TestMyLane(LaneContract):
    @pytest.fixture
    def case(self):
        return MyCase(...)
"""

from abc import ABC, abstractmethod

import msgspec
import pytest

from flexkv_core.data.transfer.lane import Lane
from flexkv_core.plan import Endpoint, Status, TransferPlan, TransferResult

__all__ = ["LaneCase", "LaneContract"]

_DRAIN_S = 30.0
"""Longer than any machine needs: a lane that does not finish fails instead of hanging."""


class LaneCase(ABC):
    """A fresh lane, what it copies from, and everything that it could write to."""

    lane: Lane
    rank: int
    clock_s: float
    """What the lane's clock shows at least."""

    foreign: Endpoint
    """A place that the lane does not serve."""

    @abstractmethod
    def plan(self, job_id: int, num_blocks: int) -> TransferPlan:
        """Return a plan of 1 or 2 blocks that will succeed; jobs 1 to 3 write different targets."""

    @abstractmethod
    def broken_plan(self, job_id: int) -> TransferPlan:
        """Return a plan in which the last id does not exist."""

    @abstractmethod
    def target(self) -> bytes:
        """Return everything that plans write to, and what surrounds it."""

    @abstractmethod
    def target_after(self, plan: TransferPlan) -> bytes:
        """Return what `target` is to be after `plan`, worked out without the lane."""

    def run(self, *plans: TransferPlan) -> list[TransferResult]:
        """Execute `plans` to their end."""
        for plan in plans:
            self.lane.submit(plan)
        assert self.lane.drain(_DRAIN_S)
        return self.poll()

    def poll(self) -> list[TransferResult]:
        """Return the lane's results; a double that holds them back overrides this."""
        return self.lane.poll()


class LaneContract(ABC):
    """What every lane promises."""

    @pytest.fixture
    @abstractmethod
    def case(self) -> LaneCase:
        """Make a new case."""

    def test_a_plan_copies_its_blocks_and_nothing_else(self, case: LaneCase) -> None:
        """The whole target is compared, so a byte too many is seen."""
        plan = case.plan(1, 2)
        expected = case.target_after(plan)
        case.run(plan)
        assert expected == case.target()

    def test_a_result_names_its_plan_and_rank(self, case: LaneCase) -> None:
        """A manager knows by them whom it hears from, and about what."""
        plan = msgspec.structs.replace(case.plan(1, 2), epoch=5)
        (result,) = case.run(plan)
        named = (result.job_id, result.epoch, result.rank, result.status, result.num_blocks)
        assert (1, 5, case.rank, Status.OK, 2) == named

    def test_every_plan_is_reported_exactly_once(self, case: LaneCase) -> None:
        """Neither a good nor a broken plan is forgotten or told twice."""
        results = case.run(case.plan(1, 2), case.plan(2, 1), case.broken_plan(4), case.plan(3, 1))
        assert sorted(result.job_id for result in results) == [1, 2, 3, 4]
        assert case.poll() == []

    def test_a_lane_without_work_is_drained(self, case: LaneCase) -> None:
        """There is nothing to wait for."""
        assert case.lane.drain(0.0)

    def test_an_id_that_does_not_exist_is_an_error_and_nothing_is_written(
        self, case: LaneCase
    ) -> None:
        """The ids are checked before the first byte moves."""
        before = case.target()
        (result,) = case.run(case.broken_plan(1))
        assert (result.status, result.num_blocks) == (Status.ERROR, 0)
        assert result.error
        assert before == case.target()

    def test_a_plan_past_its_deadline_is_not_begun(self, case: LaneCase) -> None:
        """It would not be worth finishing."""
        before = case.target()
        plan = msgspec.structs.replace(case.plan(1, 2), deadline_s=case.clock_s - 1)
        (result,) = case.run(plan)
        assert (result.status, result.num_blocks) == (Status.TIMEOUT, 0)
        assert before == case.target()

    def test_a_plan_for_other_places_is_an_error(self, case: LaneCase) -> None:
        """A router that is wrong must not hang a request."""
        plan = msgspec.structs.replace(case.plan(1, 2), source=case.foreign)
        (result,) = case.run(plan)
        assert (result.status, result.num_blocks) == (Status.ERROR, 0)

    def test_what_was_submitted_before_close_is_reported(self, case: LaneCase) -> None:
        """A last poll tells everything."""
        case.lane.submit(case.plan(1, 2))
        case.lane.close()
        assert case.lane.drain(_DRAIN_S)
        assert [result.job_id for result in case.poll()] == [1]

    def test_a_closed_lane_refuses_plans_and_writes_nothing(self, case: LaneCase) -> None:
        """It still answers."""
        before = case.target()
        case.lane.close()
        (result,) = case.run(case.plan(1, 2))
        assert (result.status, result.num_blocks) == (Status.CLOSED, 0)
        assert before == case.target()

    def test_closing_twice_is_closing_once(self, case: LaneCase) -> None:
        """Shutdown paths cross."""
        case.lane.close()
        case.lane.close()
        assert case.poll() == []
