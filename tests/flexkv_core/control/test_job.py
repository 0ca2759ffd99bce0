"""Who owes a report on a plan, and what many reports make together."""

import pytest

from flexkv_core.control.job import Job, JobKind
from flexkv_core.control.lease import Lease
from flexkv_core.plan import EnginePages, HostSlots, Status, TransferPlan, TransferResult


class FakeIndex:
    """Counts how often a lease lets go."""

    num_unpinned = 0

    def unpin(self, entry):
        self.num_unpinned += 1


@pytest.fixture
def job():
    plan = TransferPlan(
        job_id=3, source=HostSlots(b""), target=EnginePages([1]), num_blocks=8, epoch=2
    )
    lease = Lease("request", 0, 8, entry=None)
    return Job(JobKind.GET, plan, (lease,), {0, 1, 2}, plan.num_blocks)


def result(rank, num_blocks=8, status=Status.OK, **fields):
    fields = {"epoch": 2} | fields
    return TransferResult(job_id=3, rank=rank, num_blocks=num_blocks, status=status, **fields)


def test_every_rank_reports_once_in_any_order(job):
    assert all(job.accept(result(rank)) for rank in (2, 0, 1))
    assert job.waiting_ranks == set()


def test_a_second_report_of_a_rank_is_refused(job):
    job.accept(result(1))
    assert not job.accept(result(1, num_blocks=0, status=Status.ERROR))
    assert (job.num_blocks, job.status) == (8, Status.OK)


def test_a_rank_without_a_part_is_refused(job):
    assert not job.accept(result(3))


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_report_of_another_epoch_is_refused(job, epoch):
    assert not job.accept(result(0, epoch=epoch))
    assert job.waiting_ranks == {0, 1, 2}


def test_what_is_good_is_good_on_every_rank(job):
    for rank, num_blocks in enumerate((8, 5, 7)):
        job.accept(result(rank, num_blocks))
    completion = job.end(FakeIndex())
    assert (completion.num_blocks, completion.num_lost) == (5, 3)


def test_more_blocks_than_planned_are_not_believed(job):
    job.accept(result(0, num_blocks=100))
    assert job.num_blocks == 8


def test_fewer_blocks_than_none_are_none(job):
    job.accept(result(0, num_blocks=-1))
    assert job.num_blocks == 0


def test_the_worst_status_counts(job):
    for rank, status in enumerate((Status.OK, Status.TIMEOUT, Status.MISS)):
        job.accept(result(rank, 0, status))
    assert job.end(FakeIndex()).status is Status.TIMEOUT


def test_bytes_add_up_and_the_slowest_rank_counts(job):
    for rank, seconds in enumerate((0.1, 0.3, 0.2)):
        job.accept(result(rank, num_bytes=100, seconds=seconds))
    completion = job.end(FakeIndex())
    assert (completion.num_bytes, completion.seconds) == (300, 0.3)


def test_the_end_lets_go_of_what_was_claimed(job):
    index = FakeIndex()
    job.end(index)
    assert index.num_unpinned == 1


def test_what_a_rank_was_too_busy_for_is_not_lost(job):
    job.accept(result(0, 1, Status.MISS))
    job.accept(result(1, 0, Status.BUSY))
    assert (job.num_blocks, job.num_sound) == (0, 1)


def test_what_every_rank_has_read_is_sound(job):
    job.accept(result(0, 8))
    job.accept(result(1, 3, Status.TIMEOUT))
    assert (job.num_blocks, job.num_sound) == (3, 8)
