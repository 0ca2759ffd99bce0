"""The contract of a lane: the executor of plans between one pair of places.

`flexkv_core.testing.lane_contract` is the same contract as a test class.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from flexkv_core.block.types import JobId
from flexkv_core.plan import TransferPlan, TransferResult

__all__ = ["AsyncLane", "Lane"]


class Lane(ABC):
    """Moves bytes for one rank, between one kind of source and one kind of target.

    Thread: all methods are called from the worker's thread. `submit` may do the copy itself or
    only start it. Every submitted plan is reported by `poll` exactly once, whatever happens to it.
    """

    @abstractmethod
    def submit(self, plan: TransferPlan) -> None:
        """Start `plan`. Never raises for a failure of its blocks; that is a status."""

    def submit_all(self, plans: Iterable[TransferPlan]) -> None:
        """Start the plans of one step; overridden where they cost less together than one by one."""
        for plan in plans:
            self.submit(plan)

    @abstractmethod
    def poll(self) -> list[TransferResult]:
        """Return what has ended since the last call, in any order. Never blocks."""

    @abstractmethod
    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing submitted is running; False if `timeout_s` passed first."""

    @abstractmethod
    def close(self) -> None:
        """Stop. Plans that have not begun are reported as CLOSED by a last `poll`."""


class AsyncLane(Lane):
    """A lane whose plans go on while nobody calls it: their end can be awaited, and prevented."""

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Wait until `poll` has something to do or to return, or `timeout_s` has passed.

        Thread: any, while another one submits, cancels or closes. If another polls meanwhile, it
        may take what is waited for, and this waits out its time.
        """

    @abstractmethod
    def cancel(self, job_id: JobId) -> None:
        """Begin nothing more of a plan. It is reported all the same, when what runs has ended."""
