"""Turns what each rank finds in its part of a tier into chains that the index can restore."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from flexkv_core.block.types import BlockKey
from flexkv_core.plan import TierReport

__all__ = ["FoundChain", "FoundChains"]


class FoundChain(NamedTuple):
    """Blocks that every owner has, from a root to a leaf."""

    keys: list[BlockKey]
    num_given: int
    """Leading blocks that an earlier chain already had."""


class FoundChains:
    """Collects what owners report until all have finished, then gives out chains from their root.

    A block counts if every owner has found its share, and, unless fragments are kept, if the same
    holds for every block before it: ranks that were killed at different moments leave different
    blocks behind.

    Thread: scheduler thread only. Cost: O(1) for each block and owner, when it is reported.
    """

    def __init__(self, owners: Collection[int], *, keeps_fragments: bool = False) -> None:
        """Begin without reports.

        Args:
            owners: The ranks that report.
            keeps_fragments: Whether what lies behind a block that is missing is of use, too, and
                is given out as a chain that begins there.
        """
        self._keeps_fragments = keeps_fragments
        self._bits = {rank: 1 << index for index, rank in enumerate(owners)}
        self._all_bits = sum(self._bits.values())
        self._searching = set(owners)
        self._finders: dict[BlockKey, int] = {}
        """Which owners have found a block, a bit each."""

        self._children: dict[BlockKey | None, list[BlockKey]] = {}
        """Blocks that all have found and that were not given out, by the block before."""

        self._chains = self._walk()
        self._useless: list[BlockKey] = []

    @property
    def is_over(self) -> bool:
        """Whether everything that was found has been given out."""
        return not (self._searching or self._finders or self._useless)

    def note(self, report: TierReport) -> None:
        """Add what one owner has found since its last report."""
        if report.rank not in self._searching:
            return
        bit = self._bits[report.rank]
        for found in report.recovered:
            before = self._finders.get(found.key, 0)
            self._finders[found.key] = before | bit
            if before != self._all_bits and before | bit == self._all_bits:
                self._children.setdefault(found.parent, []).append(found.key)
        if report.is_recovered:
            self._searching.remove(report.rank)

    def next_chain(self) -> FoundChain | None:
        """Return the next chain, from its root to a leaf; None if none is left, or none yet.

        Chains that share a prefix follow one another, each complete.
        """
        return None if self._searching else next(self._chains, None)

    def take_useless(self, max_blocks: int) -> list[BlockKey]:
        """Return, after the last chain, useless blocks: shares or earlier blocks are missing."""
        if self._searching:
            return []
        if self._finders:
            found = self._finders.items()
            self._useless = [key for key, bits in found if bits != self._all_bits]
            for keys in self._children.values():
                self._useless += keys
            self._finders, self._children = {}, {}
        taken = self._useless[-max_blocks:]
        del self._useless[-max_blocks:]
        return taken

    def _walk(self) -> Iterator[FoundChain]:
        """Yield the path to every leaf, depth first; fragments last."""
        yield from self._walk_from(None)
        if self._keeps_fragments:
            found, all_bits = self._finders, self._all_bits
            gaps = [key for key in self._children if key and found.get(key) != all_bits]
            for key in gaps:
                yield from self._walk_from(key)

    def _walk_from(self, parent: BlockKey | None) -> Iterator[FoundChain]:
        path: list[BlockKey] = []
        num_given = 0
        branches = [self._children.pop(parent, [])]
        while branches:
            if branches[-1]:
                path.append(branches[-1].pop())
                below = self._children.pop(path[-1], [])
                if not below:
                    yield FoundChain(path.copy(), num_given)
                    num_given = len(path)
                branches.append(below)
            else:
                branches.pop()
                del path[-1:]
                num_given = min(num_given, len(path))
