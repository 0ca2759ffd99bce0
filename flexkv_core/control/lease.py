"""What the manager promises to a request: blocks that stay, or room that is kept.

Either is ended exactly once: by its request while nothing is planned, else by the last report on
its plan.
"""

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from typing_extensions import override

from flexkv_core.block.types import RequestId
from flexkv_core.control.index.node import Entry, Write
from flexkv_core.control.index.radix import PrefixIndex
from flexkv_core.errors import LeaseError

__all__ = ["Claim", "ClaimState", "Lease", "Reservation"]


class ClaimState(enum.Enum):
    """The state of a claim; it only moves forward."""

    OPEN = "open"
    PLANNED = "planned"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Claim(ABC):
    """One request's hold on a run of blocks of one tier."""

    request_id: RequestId
    first_block: int
    num_blocks: int
    state: ClaimState = field(default=ClaimState.OPEN, kw_only=True)

    @property
    def end_block(self) -> int:
        """One past the position of the last block."""
        return self.first_block + self.num_blocks

    def expect_open(self) -> None:
        """Reject a second plan or a second end.

        Raises:
            LeaseError: This claim is already planned or ended.
        """
        if self.state is not ClaimState.OPEN:
            msg = (
                f"{type(self).__name__} of request {self.request_id!r} is {self.state.value}, "
                "expected open: plan it or end it, and only once"
            )
            raise LeaseError(msg)

    @abstractmethod
    def end(self, index: PrefixIndex, num_good: int = 0) -> int:
        """Release the blocks; a plan copied the first `num_good` of them, if there was one.

        Returns:
            Blocks that became ready.
        """


@dataclass(slots=True, eq=False)
class Lease(Claim):
    """The leading ready blocks of a chain, which do not change while this is held."""

    entry: Entry
    """The deepest entry, which is pinned."""

    @override
    def end(self, index: PrefixIndex, num_good: int = 0) -> int:
        self.state = ClaimState.ENDED
        index.unpin(self.entry)
        return 0


@dataclass(slots=True, eq=False)
class Reservation(Claim):
    """Room for blocks that the tier lacks and nobody else writes; invisible until written."""

    write: Write

    @override
    def end(self, index: PrefixIndex, num_good: int = 0) -> int:
        self.state = ClaimState.ENDED
        return index.finish(self.write, num_good)
