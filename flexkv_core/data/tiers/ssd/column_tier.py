"""What a rank that writes slabs and one that only reads them have in common."""

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from typing_extensions import Self, override

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.data.tiers.base import Tier, TierBlock
from flexkv_core.data.tiers.memory import BlockMemory
from flexkv_core.data.tiers.ssd.counts import Counts
from flexkv_core.data.tiers.ssd.slab import Cell, cells_of
from flexkv_core.plan import Status

__all__ = ["BlockShare", "ColumnTier"]


@dataclass(frozen=True, slots=True)
class BlockShare:
    """One rank's share of the blocks of a namespace."""

    namespace: Namespace
    """What the blocks are blocks of."""

    columns: Sequence[Column]
    """The rank's, in the order of a block's cells."""

    cell_bytes: int
    """Size of a cell, the same in all columns."""

    engine_id: str
    """The same on all ranks of the engine, and never another engine's, not even one that has ended:
    its logs under this name would be taken for this engine's."""


class _Readable(Protocol):
    def read(self, cells: Sequence[Cell], deadline_s: float | None) -> list[Status]: ...


C = TypeVar("C", bound=_Readable)


class ColumnTier(Tier, Generic[C]):
    """Finds a block as one cell in each of the rank's columns, stored apart.

    `_columns` is replaced whole when a generation begins; a call in flight ends on the columns it
    began with. There are none once the tier is closed.
    """

    name = "ssd"
    _columns: tuple[C, ...]

    def __init__(
        self,
        memory: BlockMemory,
        share: BlockShare,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open no file yet.

        Args:
            memory: Where blocks are read to and written from; a block's cells follow one another.
                Direct I/O needs cells whose pieces begin and end on memory pages.
            share: What is stored.
            clock: What deadlines are compared with.
        """
        self._memory = memory
        self._share = share
        self._clock = clock
        self._counts = Counts()
        self._num_resets = 0

    @override
    def snapshot(self) -> Self:
        """Return a tier that keeps the current columns when a later generation begins."""
        return copy.copy(self)

    def take_counts(self) -> dict[str, float]:
        """Return the `ssd_*` rows of `metrics.METRICS` that changed since the last call."""
        return self._counts.take()

    def _read(
        self, blocks: Sequence[TierBlock], deadline_s: float | None
    ) -> list[tuple[Status, ...]]:
        """Read blocks; return how each of their cells ended."""
        columns = self._columns
        if not columns:
            return [(Status.ERROR,)] * len(blocks)
        results = [
            column.read(self._cells(blocks, index), deadline_s)
            for index, column in enumerate(columns)
        ]
        by_block = list(zip(*results, strict=True))
        self._counts.add("ssd_verified_blocks", sum(not any(cells) for cells in by_block))
        return by_block

    def _cells(self, blocks: Sequence[TierBlock], index: int) -> list[Cell]:
        """Return the cells of `blocks` in the `index`th column."""
        return cells_of(blocks, self._memory, index, self._share.cell_bytes)

    def _new_columns(self) -> tuple[C, ...]:
        """Return each column as it is when the current generation begins."""
        return tuple(map(self._new_column, self._share.columns))

    @abstractmethod
    def _new_column(self, column: Column) -> C: ...
