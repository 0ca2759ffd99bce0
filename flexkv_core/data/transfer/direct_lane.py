"""The lane between an engine's pages and a tier that was opened on them: nothing is copied."""

import msgspec
import numpy as np
from typing_extensions import override

from flexkv_core.block.types import JobId
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.data.transfer.results import refused
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import (
    Endpoint,
    EnginePages,
    HostSlots,
    Status,
    StoredBlocks,
    TransferPlan,
    TransferResult,
)

__all__ = ["DirectLane"]


class DirectLane(AsyncLane):
    """Lets a tier move between files and pages. A block is one page, a slot of a `PageMemory`.

    What the tier has begun is reported when it has ended, deadline or not: a read that came later
    would write into pages that the engine has given to somebody else. A page whose block turned out
    bad holds garbage; so do those behind it in a chain.

    Thread: one at a time, but for `wait`.
    """

    def __init__(self, rank: int, far: TierLane) -> None:
        """Take over `far`, whose memory the pages are; results are those of `rank`."""
        self._rank = rank
        self._far = far
        self._refused: list[TransferResult] = []

    @override
    def submit(self, plan: TransferPlan) -> None:
        match plan.source, plan.target:
            case (EnginePages(), StoredBlocks()) | (StoredBlocks(), EnginePages()):
                source, target = _slots_of(plan.source), _slots_of(plan.target)
                self._far.submit(msgspec.structs.replace(plan, source=source, target=target))
            case _:
                error = "a direct lane moves between engine pages and stored blocks"
                self._refused.append(refused(plan, self._rank, Status.ERROR, error))

    @override
    def poll(self) -> list[TransferResult]:
        results, self._refused = self._refused, []
        return results + self._far.poll()

    @override
    def drain(self, timeout_s: float) -> bool:
        return self._far.drain(timeout_s)

    @override
    def wait(self, timeout_s: float) -> None:
        self._far.wait(0.0 if self._refused else timeout_s)

    @override
    def cancel(self, job_id: JobId) -> None:
        self._far.cancel(job_id)

    @override
    def close(self) -> None:
        self._far.close()


def _slots_of(place: Endpoint) -> Endpoint:
    """Name pages as the slots that they are to the tier."""
    if isinstance(place, EnginePages):
        return HostSlots(np.asarray(place.page_ids, np.int64).tobytes())
    return place
