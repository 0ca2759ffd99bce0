"""The SSD tier of one rank."""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from typing_extensions import Self, override

from flexkv_core.block.layout import Column
from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import Capabilities, TierBlock
from flexkv_core.data.tiers.memory import NO_MEMORY, BlockMemory
from flexkv_core.data.tiers.ssd.column import ColumnStore
from flexkv_core.data.tiers.ssd.column_tier import BlockShare, ColumnTier
from flexkv_core.data.tiers.ssd.directory import open_directories
from flexkv_core.data.tiers.ssd.format import Superblock
from flexkv_core.data.tiers.ssd.generations import Generations
from flexkv_core.data.tiers.ssd.key_log import KeyLog, LogHeader, log_name
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.scan import SlabScan
from flexkv_core.data.tiers.ssd.space import Space
from flexkv_core.plan import Status, StoredKey

__all__ = ["SsdTier"]


class SsdTier(ColumnTier[ColumnStore]):
    """Keeps one rank's blocks in slab files that the next process finds again.

    A block is a cell in each of the rank's columns, stored apart, so that a rank of another
    parallel degree can read its part. It can be read when all of its cells are there.

    Thread: `read`, `write`, `delete` and `snapshot` any, several at once; everything else the
    worker's. No lock is held during I/O; `_scan` is replaced, like the columns, when a generation
    begins. `_snapping` guards `_deleted`.
    """

    capabilities = Capabilities(durable=True)

    def __init__(
        self,
        memory: BlockMemory,
        share: BlockShare,
        options: SsdOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Adopt what earlier processes left, and begin to scan it.

        Args:
            memory: As in `ColumnTier`.
            share: What is stored.
            options: Directories and limits.
            clock: As in `ColumnTier`.

        Raises:
            TierError: No directory can be used.
        """
        super().__init__(memory, share, clock)
        self._quota_bytes = options.quota_bytes // len(share.columns)
        self._directories = open_directories(options)
        self._has_followers = options.has_followers
        self._deleted: WeakKeyDictionary[SsdTier, set[BlockKey]] = WeakKeyDictionary()
        """What was deleted since each snapshot was taken: while a plan has it, it is known here."""

        self._snapping = threading.Lock()
        self._generations = Generations(self._directories, share.namespace, share.columns)
        self._has_lost_name = False
        name = secrets.token_hex(8)
        self._name_generation(name, self._generations.resume(name))
        self._columns = self._new_columns()
        for column in self._columns:
            column.space.adopt()
        self._scan = SlabScan(self._columns, self._counts)

    @override
    def snapshot(self) -> Self:
        """Return this generation, through which no block is stored that is deleted from now on.

        Whoever gives up a write deletes its keys, and the write may end long after.
        """
        snapshot = super().snapshot()
        with self._snapping:
            self._deleted[snapshot] = set()
        return snapshot

    @override
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        columns, by_block = self._columns, self._read(blocks, deadline_s)
        corrupt = [at for at, statuses in enumerate(by_block) if Status.CORRUPT in statuses]
        _forget(columns, [blocks[at].key for at in corrupt])
        self._counts.add("ssd_corrupt_blocks", len(corrupt))
        return list(map(max, by_block))

    @override
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        columns = self._columns
        if not columns:
            return [Status.ERROR] * len(blocks)
        deleted = self._deleted.get(self, set())
        results = [
            column.write(self._cells(blocks, index), deadline_s, deleted)
            for index, column in enumerate(columns)
        ]
        worst = [max(statuses) for statuses in zip(*results, strict=True)]
        failed = {block.key for block, status in zip(blocks, worst, strict=True) if status}
        # What was deleted meanwhile may have been stored again, by a later plan.
        _forget(columns, list(failed - deleted))
        return worst

    @override
    def delete(self, keys: Sequence[BlockKey]) -> None:
        with self._snapping:
            for deleted in self._deleted.values():
                deleted.update(keys)
        _forget(self._columns, keys)

    @override
    def close(self) -> None:
        """Leave the slabs to the next process; calls in flight still end normally.

        Temporary slabs are deleted. A second call does nothing.
        """
        self._scan.stop()
        self._generations.close()
        if self._is_temporary:
            self._unlink()
        self._replace_columns(())
        self._memory = NO_MEMORY

    @property
    def capacity_blocks(self) -> int:
        """Blocks there is room for; falls when the disk is full, rises when it may have space."""
        return min((column.space.num_slots for column in self._columns), default=0)

    @property
    def is_recovered(self) -> bool:
        """Whether all blocks that were found have been taken."""
        return self._scan.is_over

    def take_recovered(self, limit: int) -> list[StoredKey]:
        """Return up to `limit` complete blocks that earlier processes left."""
        return self._scan.take(limit)

    def wait_recovered(self) -> None:
        """Wait until everything that earlier processes left has been found."""
        self._scan.join()

    def resize(self, quota_bytes: int) -> None:
        """Use no more than `quota_bytes` from here on; blocks that do not fit are forgotten."""
        self._quota_bytes = quota_bytes // len(self._share.columns)
        for column in self._columns:
            column.space.resize(self._quota_bytes)

    def begin_generation(self, name: str, *, keeps_name: bool) -> None:
        """Forget everything: the weights have changed in place.

        Args:
            name: Of the new generation: unused so far, or just recorded by `record_reset`.
            keeps_name: The user named the weights, and the name stays: what was stored under it is
                deleted, and not found if it comes back. Otherwise it is left for a process with
                the old weights, and from here on slabs are temporary.
        """
        self._scan.stop()
        self._num_resets += 1
        self._has_lost_name = self._has_lost_name or not keeps_name
        tokens = None if self._has_lost_name else self._generations.begin(name)
        if keeps_name or self._is_temporary:
            self._unlink()
        self._name_generation(name, tokens)
        self._replace_columns(self._new_columns())

    def _name_generation(self, name: str, tokens: list[str] | None) -> None:
        """Set the generation of new slabs, by column; None for one never looked up again."""
        self._is_temporary = tokens is None
        columns = self._share.columns
        self._tokens = dict(zip(columns, tokens or [name] * len(columns), strict=True))

    @override
    def _new_column(self, column: Column) -> ColumnStore:
        superblock = Superblock.of(
            self._share.namespace,
            column,
            self._share.cell_bytes,
            generation=self._tokens[column],
            is_temporary=self._is_temporary,
        )
        space = Space(
            self._directories,
            superblock,
            self._quota_bytes,
            self._share.engine_id,
            self._clock,
            is_aligned=self._memory.is_aligned,
        )
        log = self._new_log(space, column, superblock) if self._has_followers else None
        return ColumnStore(space, self._counts, self._clock, log)

    def _new_log(self, space: Space, column: Column, superblock: Superblock) -> KeyLog:
        header = LogHeader(
            engine_id=self._share.engine_id, num_resets=self._num_resets, superblock=superblock
        )
        name = log_name(self._share.engine_id, self._share.namespace, column)
        return KeyLog(space, self._directories, name, header, self._clock)

    def _replace_columns(self, columns: tuple[ColumnStore, ...]) -> None:
        """Use `columns` from here on, and close the former ones."""
        former, self._columns = self._columns, columns
        for column in former:
            column.close()

    def _unlink(self) -> None:
        for column in self._columns:
            column.space.unlink()


def _forget(columns: Sequence[ColumnStore], keys: Sequence[BlockKey]) -> None:
    for column in columns:
        column.forget(keys)
