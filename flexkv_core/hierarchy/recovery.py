"""From what each rank finds in its part of a tier to chains that the index can take in."""

from collections.abc import Collection, Iterator

from flexkv_core.plan import TierReport
from flexkv_core.types import BlockKey

__all__ = ["Recovery"]


class Recovery:
    """Collects what owners report until all have ended, and then gives out chains from their root.

    A block counts if every owner has found its share, and if the same holds for every block
    before it: ranks that were killed at different moments leave different blocks behind.

    Thread: scheduler thread only. Cost: O(1) for each block and owner, when it is reported.
    """

    def __init__(self, owners: Collection[int]) -> None:
        self._owners = frozenset(owners)
        self._searching = set(owners)
        self._finders: dict[BlockKey, set[int]] = {}
        """Which owners have found a block; taken out when all have, or in the end."""

        self._children: dict[BlockKey | None, list[BlockKey]] = {}
        self._chains: Iterator[list[BlockKey]] | None = None

    @property
    def is_over(self) -> bool:
        """Whether everything that was found has been given out."""
        return not (self._searching or self._children or self._finders)

    def note(self, report: TierReport) -> None:
        """Take in what one owner has found since its last report."""
        if report.rank not in self._searching:
            return
        for found in report.recovered:
            finders = self._finders.setdefault(found.key, set())
            finders.add(report.rank)
            if finders == self._owners:
                del self._finders[found.key]
                self._children.setdefault(found.parent, []).append(found.key)
        if report.is_recovered:
            self._searching.remove(report.rank)

    def next_chain(self) -> list[BlockKey] | None:
        """Return the next chain, from its root to a leaf; None if there is none (any more).

        Chains that share their beginning come one after the other, each whole.
        """
        if self._searching:
            return None
        if self._chains is None:
            self._chains = self._walk()
        return next(self._chains, None)

    def take_useless(self) -> list[BlockKey]:
        """Return, after the last chain, what is of no use: shares or earlier blocks are missing."""
        if self._searching:
            return []
        useless = list(self._finders)
        for keys in self._children.values():
            useless += keys
        self._finders, self._children = {}, {}
        return useless

    def _walk(self) -> Iterator[list[BlockKey]]:
        """Yield the path to every leaf, depth first."""
        path: list[BlockKey] = []
        branches = [self._children.pop(None, [])]
        while branches:
            if branches[-1]:
                path.append(branches[-1].pop())
                below = self._children.pop(path[-1], [])
                if not below:
                    yield path.copy()
                branches.append(below)
            else:
                branches.pop()
                del path[-1:]
