"""Results for every executor, so that none forgets the plan's job or epoch."""

from flexkv_core.plan import Status, TransferPlan, TransferResult

__all__ = ["done", "refused"]


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
