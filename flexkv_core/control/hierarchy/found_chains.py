"""Turns what each rank finds in its part of a tier into runs that the index can restore."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from flexkv_core.block.types import BlockKey
from flexkv_core.control.index.node import ChainEnd
from flexkv_core.plan import TierReport

__all__ = ["FoundChains", "FoundRun"]

_MAX_RUN_BLOCKS = 256
"""Longer ones are given out in parts, so that a step of restoring can end between them."""


@dataclass(slots=True, eq=False)
class FoundRun:
    """Consecutive blocks that every owner has, each but the last followed by the next alone."""

    start: int
    """Position of the first block in its chain."""

    keys: list[BlockKey]
    before: "FoundRun | None"
    """The run that this one continues."""

    place: ChainEnd | None = None
    """Where in the index it ends, or what is there of the blocks before it, once that is known."""

    @property
    def end(self) -> int:
        """One past the position of the last block."""
        return self.start + len(self.keys)


class FoundChains:
    """Collects what owners report until all have finished, then gives out runs from their root.

    A block counts if every owner has found its share, and, unless fragments are kept, if the same
    holds for every block before it: ranks that were killed at different moments leave different
    blocks behind.

    Thread: scheduler thread only. Cost: O(1) for each block and owner when it is reported, and for
    each block that is given out, however the chains branch.
    """

    def __init__(self, owners: Collection[int], *, keeps_fragments: bool = False) -> None:
        """Begin without reports.

        Args:
            owners: The ranks that report.
            keeps_fragments: Whether what lies behind a block that is missing is of use, too, and
                is given out as a chain that begins there.
        """
        self.chain: list[BlockKey] = []
        """The keys from the root, or from a gap, to the end of the run that was given out last."""

        self._keeps_fragments = keeps_fragments
        self._bits = {rank: 1 << index for index, rank in enumerate(owners)}
        self._all_bits = sum(self._bits.values())
        self._searching = set(owners)
        self._silent = set(owners)
        """Owners that have said nothing, not even that they are not ready to search."""

        self._finding: set[int] = set()
        """Owners that have begun to find blocks, and have not finished."""

        self._finders: dict[BlockKey, int] = {}
        """Which owners have found a block that was not given out, a bit each."""

        self._children: dict[BlockKey | None, list[BlockKey]] = {}
        """Blocks that all have found and that were not given out, by the block before."""

        self._runs = self._walk()

    @property
    def is_over(self) -> bool:
        """Whether everything that was found has been given out."""
        return not (self._searching or self._finders)

    @property
    def can_proceed(self) -> bool:
        """Whether another report is about to come, or chains can be given out."""
        if self._searching:
            return bool(self._silent or self._finding)
        return not self.is_over

    def note(self, report: TierReport) -> None:
        """Add what one owner has found since its last report."""
        if report.rank not in self._searching:
            return
        self._silent.discard(report.rank)
        if report.recovered:
            self._finding.add(report.rank)
        bit = self._bits[report.rank]
        for found in report.recovered:
            before = self._finders.get(found.key, 0)
            self._finders[found.key] = before | bit
            if before != self._all_bits and before | bit == self._all_bits:
                self._children.setdefault(found.parent, []).append(found.key)
        if report.is_recovered:
            self._searching.remove(report.rank)
            self._finding.discard(report.rank)

    def next_run(self) -> FoundRun | None:
        """Return the next run, after the one that it continues; None if none is left, or none yet.

        All runs that continue the same one follow each other: so the index splits a node where
        chains diverge while it is no longer than these runs.
        """
        return None if self._searching else next(self._runs, None)

    def take_useless(self, max_blocks: int) -> list[BlockKey]:
        """Return, after the last run, useless blocks: shares or earlier blocks are missing."""
        if self._searching:
            return []
        num_blocks = min(max_blocks, len(self._finders))
        useless = [self._finders.popitem()[0] for _ in range(num_blocks)]
        if not self._finders:
            self._children = {}
        return useless

    def _walk(self) -> Iterator[FoundRun]:
        """Yield all runs, fragments last, and keep `chain` up to date."""
        yield from self._walk_from(None)
        if self._keeps_fragments:
            found, all_bits = self._finders, self._all_bits
            gaps = [key for key in self._children if key and found.get(key) != all_bits]
            for key in gaps:
                yield from self._walk_from(key)

    def _walk_from(self, parent: BlockKey | None) -> Iterator[FoundRun]:
        branches: list[tuple[FoundRun | None, list[BlockKey]]]
        branches = [(None, self._children.pop(parent, []))]
        while branches:
            before, below = branches.pop()
            if before is not None:
                self._append(before)
            while below:
                run, below_run = self._run(before, below.pop())
                self._append(run)
                yield run
                if below_run:
                    branches.append((run, below_run))

    def _append(self, run: FoundRun) -> None:
        """Let `chain` end with `run`; up to there it is the chain of `run.before`."""
        del self.chain[run.start :]
        self.chain += run.keys

    def _run(self, before: FoundRun | None, first_key: BlockKey) -> tuple[FoundRun, list[BlockKey]]:
        """Return the run that begins with `first_key`, and the blocks that may follow it."""
        keys, below = [first_key], self._take_below(first_key)
        while len(below) == 1 and len(keys) < _MAX_RUN_BLOCKS:
            keys += below
            below = self._take_below(keys[-1])
        return FoundRun(0 if before is None else before.end, keys, before), below

    def _take_below(self, key: BlockKey) -> list[BlockKey]:
        """Return the blocks after `key`, which is given out now."""
        del self._finders[key]
        return self._children.pop(key, [])
