"""One rank's KV on SSD: blocks that are of use only behind those before them."""

from collections.abc import Sequence

from flexkv_connectors.sglang.ssd_store import Chain, SsdStore
from flexkv_core.types import BlockKey

__all__ = ["ChainStore"]


class ChainStore(SsdStore):
    """Blocks by the chain of keys that each of them ends.

    Every chain begins with the first block of a sequence.

    Thread: any.
    """

    def find(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of the chain are on SSD."""
        with self._index_lock:
            return self._num_found(keys)

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
