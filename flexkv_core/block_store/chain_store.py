"""One rank's KV on SSD: blocks that are of use only behind those before them."""

from collections.abc import Sequence

from flexkv_core.block.types import BlockKey
from flexkv_core.block_store.block_store import BlockStore, Chain
from flexkv_core.block_store.follower_store import FollowerStore
from flexkv_core.block_store.ssd_store import SsdStore

__all__ = ["ChainAccess", "ChainFollower", "ChainStore"]


class ChainAccess(BlockStore):
    """Blocks by the chain of keys that each of them ends.

    Every chain begins with the first block of a sequence.

    Thread: any.
    """

    def find(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of the chain are on SSD."""
        return self._count_leading(keys)

    def load(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Fill pages with the last blocks of the chain; pages of bad blocks are not to be used.

        Returns:
            How many leading pages were filled.
        """
        (num_filled,) = self._load([Chain(keys, page_ids)])
        return num_filled

    def save(self, keys: Sequence[BlockKey], page_ids: Sequence[int]) -> int:
        """Store pages as the last blocks of the chain.

        Returns:
            How many leading pages are stored now; 0 as well if a block before them is not.
        """
        (num_stored,) = self._save([Chain(keys, page_ids)])
        return num_stored


class ChainStore(ChainAccess, SsdStore):
    """The same where this rank writes them."""


class ChainFollower(ChainAccess, FollowerStore):
    """The same where another rank writes them."""
