"""How much a step may save where blocks are staged in device memory on their way out."""

from collections.abc import Iterable

from flexkv_core.types import JobId

__all__ = ["StagingRoom"]


class StagingRoom:
    """Counts the blocks that saves have under way against the smallest ring of any rank.

    Without a ring, on a CPU, there is no bound. Thread: the scheduler's.
    """

    def __init__(self) -> None:
        self._num_places: int | None = None
        self._held: dict[JobId, int] = {}

    def note(self, capacities: Iterable[int]) -> None:
        """Take in how many blocks the rings of some ranks hold."""
        known = [] if self._num_places is None else [self._num_places]
        self._num_places = min([*known, *capacities], default=None)

    def clip(self, num_blocks: int) -> int:
        """Return how many of `num_blocks` may be saved now."""
        if self._num_places is None:
            return num_blocks
        return min(num_blocks, self._num_places - sum(self._held.values()))

    def take(self, job_id: JobId, num_blocks: int) -> None:
        """Note that a plan saves `num_blocks`, no more than `clip` allowed."""
        self._held[job_id] = num_blocks

    def give_back(self, job_id: JobId) -> None:
        """Note that the last rank has reported on a plan."""
        self._held.pop(job_id, None)
