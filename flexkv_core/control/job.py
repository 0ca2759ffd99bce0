"""A plan in flight: what it holds, and which ranks still owe a report."""

import enum
from dataclasses import dataclass, field

import msgspec

from flexkv_core.block.types import JobId, RequestId
from flexkv_core.control.index.radix import PrefixIndex
from flexkv_core.control.lease import Claim
from flexkv_core.plan import Status, TransferPlan, TransferResult

__all__ = ["Completion", "Job", "JobKind"]


class JobKind(enum.Enum):
    """Which plan function made a job."""

    GET = "get"
    PUT = "put"
    COPY = "copy"


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan ended, over all ranks that had a part in it."""

    job_id: JobId
    request_id: RequestId
    kind: JobKind
    status: Status
    """The worst of all ranks."""

    num_blocks: int
    """Leading blocks of the plan that are good on every rank."""

    num_published: int
    """Blocks that became findable, including those of other plans that had to wait for these."""

    num_lost: int
    """Blocks of the plan that are not good on every rank."""

    num_sound: int
    """Leading blocks of the plan that no rank has lost: it may have been busy, or too slow."""

    num_bytes: int
    """Copied by all ranks together."""

    seconds: float
    """Taken by the slowest rank."""


@dataclass(slots=True, eq=False)
class Job:
    """One plan from the moment it is handed out until the last rank has reported."""

    kind: JobKind
    plan: TransferPlan
    claims: tuple[Claim, ...]
    """What it reads and writes: both of the same request."""

    waiting_ranks: set[int]
    num_blocks: int
    num_sound: int = field(init=False)
    status: Status = Status.OK
    num_bytes: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.num_sound = self.num_blocks

    def accept(self, result: TransferResult) -> bool:
        """Count the report of one rank; False if that rank does not owe one."""
        if result.rank not in self.waiting_ranks or result.epoch != self.plan.epoch:
            return False
        self.waiting_ranks.remove(result.rank)
        self.num_blocks = min(self.num_blocks, max(result.num_blocks, 0))
        if result.status.is_loss:
            self.num_sound = min(self.num_sound, max(result.num_blocks, 0))
        self.status = max(self.status, result.status)
        self.num_bytes += result.num_bytes
        self.seconds = max(self.seconds, result.seconds)
        return True

    def end(self, index: PrefixIndex) -> Completion:
        """Release what the plan held, publish what it wrote, and return how it ended."""
        num_published = sum(claim.end(index, self.num_blocks) for claim in self.claims)
        return Completion(
            job_id=self.plan.job_id,
            request_id=self.claims[0].request_id,
            kind=self.kind,
            status=self.status,
            num_blocks=self.num_blocks,
            num_published=num_published,
            num_lost=self.plan.num_blocks - self.num_blocks,
            num_sound=self.num_sound,
            num_bytes=self.num_bytes,
            seconds=self.seconds,
        )
