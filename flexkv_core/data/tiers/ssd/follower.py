"""The SSD tier of a rank that reads what another rank of its engine writes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import override

from flexkv_core.block.layout import Column
from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import Capabilities, TierBlock
from flexkv_core.data.tiers.memory import NO_MEMORY, BlockMemory
from flexkv_core.data.tiers.ssd.column_tier import BlockShare, ColumnTier
from flexkv_core.data.tiers.ssd.followed_column import FollowedColumn
from flexkv_core.data.tiers.ssd.format import Superblock
from flexkv_core.data.tiers.ssd.key_log import LogHeader, log_name
from flexkv_core.plan import Status

__all__ = ["Follower"]


class Follower(ColumnTier[FollowedColumn]):
    """Finds and reads the blocks of a writer: an `SsdTier` with `has_followers`.

    It changes nothing on the disk, and knows only what the writer's logs say: nothing before the
    writer has stored something, and nothing after it has closed.

    Thread: `read` and `count_leading` any; everything else one at a time.
    """

    capabilities = Capabilities()

    def __init__(
        self,
        memory: BlockMemory,
        share: BlockShare,
        directories: Sequence[Path],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow the writer of the same share, which is opened now or later.

        Args:
            memory: As in `ColumnTier`.
            share: The writer's.
            directories: The writer's.
            clock: As in `ColumnTier`.
        """
        super().__init__(memory, share, clock)
        self._directories = directories
        self._columns = self._new_columns()

    def count_leading(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading `keys` are stored as of now."""
        return min((column.count_leading(keys) for column in self._columns), default=0)

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        return list(map(max, self._read(blocks, deadline_s)))

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        """Return ERROR: only the writer writes."""
        return [Status.ERROR] * len(blocks)

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Do nothing: the blocks are the writer's."""

    @override
    def close(self) -> None:
        """Stop following; calls in flight still end normally."""
        self._columns = ()
        self._memory = NO_MEMORY

    def begin_generation(self) -> None:
        """Forget everything, and follow the writer once it has begun as many generations."""
        self._num_resets += 1
        self._columns = self._new_columns()

    @override
    def _new_column(self, column: Column) -> FollowedColumn:
        share = self._share
        name = log_name(share.engine_id, share.namespace, column)
        header = LogHeader(
            engine_id=share.engine_id,
            num_resets=self._num_resets,
            superblock=Superblock.of(share.namespace, column, share.cell_bytes),
        )
        return FollowedColumn(
            [directory / name for directory in self._directories],
            header,
            self._counts,
            self._clock,
            is_aligned=self._memory.is_aligned,
        )
