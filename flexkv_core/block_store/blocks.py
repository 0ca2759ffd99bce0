"""What a block store is asked for, and what it answers."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.errors import LayoutError
from flexkv_core.plan import Status

__all__ = ["Access", "Blocks", "Chain", "Copies", "Copy", "JobResult"]


class Chain(NamedTuple):
    """Keys of blocks from the first of their sequence on, and pages for the last of them."""

    keys: Sequence[BlockKey]
    page_ids: Sequence[int]

    @property
    def first_block(self) -> int:
        """The block that the first page is for."""
        return len(self.keys) - len(self.page_ids)

    def part(self, start: int, end: int) -> "Chain":
        """Return blocks `start` to `end` as a chain of their own, with the pages for them."""
        first = self.first_block
        page_ids = self.page_ids[max(0, start - first) : max(0, end - first)]
        return Chain(self.keys[start:end], page_ids)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Consecutive blocks, or any where each stands alone, and an engine's page for each.

    Raises:
        LayoutError: There are more keys than pages, or fewer.
    """

    keys: Sequence[BlockKey]
    page_ids: Sequence[int]
    before: Sequence[BlockKey] = ()
    """Keys of the blocks before `keys`, from the first of the sequence on."""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.page_ids):
            msg = f"{len(self.page_ids)} pages for {len(self.keys)} keys: expected one for each"
            raise LayoutError(msg)


class Access(enum.Enum):
    """Which other blocks a block needs to be of use."""

    CHAIN = "chain"
    """All before it: attention over the whole sequence. Those that the engine still has need not
    be stored."""

    SINGLE = "single"
    """None: a sliding window or a state is kept where sequences ended. Its key, in the engine's
    chain, still stands for all that comes before it."""

    def chains_of(self, blocks: Blocks) -> list[Chain]:
        """Return `blocks` as chains that are independent of each other; none is a caller's list."""
        if self is Access.CHAIN:
            return [Chain([*blocks.before, *blocks.keys], [*blocks.page_ids])]
        pairs = zip(blocks.keys, blocks.page_ids, strict=True)
        return [Chain([key], [page_id]) for key, page_id in pairs]


class JobResult(NamedTuple):
    """How a job ended."""

    job_id: JobId
    statuses: list[Status]
    """One for each of its keys. OK: the page was filled; or the block is stored now, or being
    stored by another job. MISS: it was not there; or there is no room for it, or it follows what
    another chain already holds behind the blocks that this job stores. BUSY: refused, because too
    much was in flight. TIMEOUT: too late, or cancelled. CLOSED: the store was closed. Behind a
    block of a chain that failed, what was stored with it shares its status."""


class Copy(NamedTuple):
    """What one job has moved."""

    num_blocks: int
    num_bytes: int
    seconds: float


class Copies(NamedTuple):
    """Jobs that have moved something."""

    loads: list[Copy]
    saves: list[Copy]
