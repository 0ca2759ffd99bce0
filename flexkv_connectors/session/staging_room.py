"""How many blocks a step may save where they are staged in device memory on their way out."""

from collections.abc import Callable, Iterable

from flexkv_core.block.types import JobId
from flexkv_core.metrics import Recorder

__all__ = ["StagingRoom"]


class StagingRoom:
    """Counts the blocks that are being saved against the smallest staging ring of any rank.

    Without a ring, on a CPU, there is no limit. Thread: the scheduler's.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._num_places: int | None = None
        self._held: dict[JobId, int] = {}

    def note(self, capacities: Iterable[int]) -> None:
        """Note how many blocks the rings of some ranks hold."""
        known = [] if self._num_places is None else [self._num_places]
        self._num_places = min([*known, *capacities], default=None)
        if self._num_places is not None:
            self._recorder.set("staging_capacity_blocks", self._num_places)

    def clip(self, num_blocks: int, num_known: Callable[[], int]) -> int:
        """Return how many leading blocks of a chain may be saved now; the rest are delayed.

        Args:
            num_blocks: Blocks of the chain to be saved.
            num_known: Returns how many of them need no saving; called only if there is a ring.
        """
        if self._num_places is None:
            return num_blocks
        num_saved = min(num_blocks, num_known())
        num_now = min(num_blocks - num_saved, self._num_places - sum(self._held.values()))
        self._recorder.add("save_delayed_blocks", num_blocks - num_saved - num_now)
        return num_saved + num_now

    def take(self, job_id: JobId, num_blocks: int) -> None:
        """Note that a plan saves `num_blocks`, no more than `clip` allowed."""
        self._held[job_id] = num_blocks
        self._record_use()

    def give_back(self, job_id: JobId) -> None:
        """Note that the last rank has reported on a plan."""
        self._held.pop(job_id, None)
        self._record_use()

    def _record_use(self) -> None:
        if self._num_places is not None:
            self._recorder.set("staging_used_blocks", sum(self._held.values()))
