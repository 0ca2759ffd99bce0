"""The SSD tier of a rank that reads what another rank of its engine writes."""

import copy
import time
from collections.abc import Callable, Sequence

from typing_extensions import override

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import Capabilities, Tier, TierBlock
from flexkv_core.data.tiers.memory import NO_MEMORY, BlockMemory
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.followed_column import FollowedColumn
from flexkv_core.data.tiers.ssd.format import Superblock
from flexkv_core.data.tiers.ssd.key_log import LogHeader, log_name
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.slab import cells_of
from flexkv_core.plan import Status

__all__ = ["Follower"]


class Follower(Tier):
    """Finds and reads the blocks of a writer: an `SsdTier` with `has_followers`.

    It changes nothing on the disk, and knows only what the writer's logs say: nothing before the
    writer has stored something, and nothing after it has closed.

    Thread: `read` and `count_leading` any; everything else one at a time. `_columns` is replaced
    whole when a generation begins; a call in flight ends on the columns it began with.
    """

    name = "ssd"
    capabilities = Capabilities()

    def __init__(
        self,
        memory: BlockMemory,
        namespace: Namespace,
        columns: Sequence[Column],
        cell_bytes: int,
        options: SsdOptions,
        engine_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow the writer that was opened with the same arguments, now or later.

        Args:
            memory: Where blocks are read to; a block's cells follow one another.
            namespace: What the blocks are blocks of.
            columns: The writer's, in the order of a block's cells.
            cell_bytes: Size of a cell, the same in all columns.
            options: The writer's directories; limits are ignored.
            engine_id: The same on all ranks of the engine, and never another engine's, not even
                one that has ended: its log under this name would be taken for this engine's.
            clock: What deadlines are compared with.
        """
        self._memory = memory
        self._namespace = namespace
        self._layout = tuple(columns)
        self._cell_bytes = cell_bytes
        self._directories = options.directories
        self._engine_id = engine_id
        self._clock = clock
        self._counts = Counts()
        self._num_resets = 0
        self._columns = self._new_columns()

    def count_leading(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading `keys` are stored as of now."""
        return min((column.count_leading(keys) for column in self._columns), default=0)

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        columns = self._columns
        if not columns:
            return [Status.ERROR] * len(blocks)
        results = [
            column.read(cells_of(blocks, self._memory, index, self._cell_bytes), deadline_s)
            for index, column in enumerate(columns)
        ]
        worst = [max(statuses) for statuses in zip(*results, strict=True)]
        self._counts.add("ssd_verified_blocks", worst.count(Status.OK))
        return worst

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        """Return ERROR: only the writer writes."""
        return [Status.ERROR] * len(blocks)

    @override
    def snapshot(self) -> "Follower":
        """Return a tier that keeps the current columns when a later generation begins."""
        return copy.copy(self)

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Do nothing: the blocks are the writer's."""

    @override
    def close(self) -> None:
        """Stop following; calls in flight still end normally."""
        self._columns = ()
        self._memory = NO_MEMORY

    def take_counts(self) -> dict[str, float]:
        """Return the `ssd_*` rows of `metrics.METRICS` that changed since the last call."""
        return self._counts.take()

    def begin_generation(self) -> None:
        """Forget everything, and follow the writer once it has begun as many generations."""
        self._num_resets += 1
        self._columns = self._new_columns()

    def _new_columns(self) -> tuple[FollowedColumn, ...]:
        return tuple(map(self._new_column, self._layout))

    def _new_column(self, column: Column) -> FollowedColumn:
        name = log_name(self._engine_id, self._namespace, column)
        header = LogHeader(
            engine_id=self._engine_id,
            num_resets=self._num_resets,
            superblock=Superblock.of(self._namespace, column, self._cell_bytes),
        )
        return FollowedColumn(
            [directory / name for directory in self._directories],
            header,
            self._counts,
            self._clock,
            is_aligned=self._memory.is_aligned,
        )
