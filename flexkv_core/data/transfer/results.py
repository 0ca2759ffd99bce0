"""Results for every executor, so that none forgets the plan's job or epoch."""

from collections.abc import Sequence

from flexkv_core.plan import Status, TransferPlan, TransferResult

__all__ = ["done", "ended", "num_leading", "refused", "statuses_of"]


def done(plan: TransferPlan, rank: int, num_bytes: int, seconds: float) -> TransferResult:
    """Report that all blocks of `plan` are good."""
    return TransferResult(
        job_id=plan.job_id,
        rank=rank,
        status=Status.OK,
        num_blocks=plan.num_blocks,
        epoch=plan.epoch,
        num_bytes=num_bytes,
        seconds=seconds,
    )


def refused(plan: TransferPlan, rank: int, status: Status, error: str = "") -> TransferResult:
    """Report that `plan` ended before its first byte moved."""
    return TransferResult(
        job_id=plan.job_id, rank=rank, status=status, num_blocks=0, epoch=plan.epoch, error=error
    )


def ended(
    plan: TransferPlan,
    rank: int,
    statuses: Sequence[Status],
    *,
    is_chain: bool,
    block_bytes: int = 0,
    seconds: float = 0.0,
) -> TransferResult:
    """Report how the blocks of `plan` ended: as a chain up to the first failure, or one by one."""
    num_good = num_leading(statuses) if is_chain else statuses.count(Status.OK)
    return TransferResult(
        job_id=plan.job_id,
        rank=rank,
        status=statuses[num_good] if is_chain and num_good < len(statuses) else max(statuses),
        num_blocks=num_good,
        epoch=plan.epoch,
        num_bytes=num_good * block_bytes,
        seconds=seconds,
        statuses=() if is_chain else tuple(statuses),
    )


def statuses_of(result: TransferResult, num_blocks: int) -> list[Status]:
    """Return one status a block; what lies behind a failure in a chain shares its status."""
    if result.statuses:
        return list(result.statuses)
    return [Status.OK] * result.num_blocks + [result.status] * (num_blocks - result.num_blocks)


def num_leading(statuses: Sequence[Status]) -> int:
    """Return how many blocks are good before the first that is not."""
    bad = (at for at, status in enumerate(statuses) if status is not Status.OK)
    return next(bad, len(statuses))
