"""One rank's pages of a pool beside its KV on SSD: each is found by its own key, alone."""

from collections.abc import Callable, Sequence

from flexkv_core.block.types import BlockKey
from flexkv_core.block_store.block_store import BlockStore, Chain
from flexkv_core.block_store.follower_store import FollowerStore
from flexkv_core.block_store.ssd_store import SsdStore

__all__ = ["PageAccess", "PageFollower", "PageStore"]

_PAGES_A_RUN = 128
"""More would wait for threads, and a lane lets only so many wait."""


class PageAccess(BlockStore):
    """Blocks that need no other: a sliding window or a state is kept where sequences ended.

    Each is a chain of one block. Its key, in SGLang's chain, still says all that comes before it.

    Thread: any.
    """

    def find(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Tell for each key whether its page is on SSD."""
        return [self._count_leading([key]) == 1 for key in keys]

    def load(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> list[bool]:
        """Fill pages, and tell for each whether it was; the others are not to be used."""
        return _by_runs(self._load, keys, page_ids)

    def save(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> list[bool]:
        """Store pages, and tell for each whether it is stored now."""
        return _by_runs(self._save, keys, page_ids)


class PageStore(PageAccess, SsdStore):
    """The same where this rank writes them."""


class PageFollower(PageAccess, FollowerStore):
    """The same where another rank writes them."""


def _by_runs(
    move: Callable[[Sequence[Chain]], list[int]],
    keys: Sequence[BlockKey],
    page_ids: Sequence[int],
) -> list[bool]:
    chains = [Chain([key], [page]) for key, page in zip(keys, page_ids, strict=True)]
    runs = (chains[at : at + _PAGES_A_RUN] for at in range(0, len(chains), _PAGES_A_RUN))
    return [num_good == 1 for run in runs for num_good in move(run)]
