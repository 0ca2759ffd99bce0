"""One rank's blocks of one kind, whoever writes them: what every store can be asked."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from flexkv_core.block.types import BlockKey

__all__ = ["BlockStore", "Chain", "Copies", "Copy"]


class Chain(NamedTuple):
    """Keys of blocks from the first of their sequence on, and pages for the last of them."""

    keys: Sequence[BlockKey]
    page_ids: Sequence[int]

    @property
    def first_block(self) -> int:
        """The block that the first page is for."""
        return len(self.keys) - len(self.page_ids)


class Copy(NamedTuple):
    """What one call has moved."""

    num_blocks: int
    num_bytes: int
    seconds: float


class Copies(NamedTuple):
    """Calls that have moved something."""

    loads: list[Copy]
    saves: list[Copy]


class BlockStore(ABC):
    """Blocks on SSD, moved straight to and from engine pages.

    A subclass says what a block is found by (`ChainAccess`, `PageAccess`), another who writes it
    (`SsdStore`, `FollowerStore`).

    Thread: any.
    """

    @abstractmethod
    def resize(self, quota_bytes: int) -> None:
        """Use no more than `quota_bytes` from here on."""

    @abstractmethod
    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; see `SsdTier.begin_generation`.

        Raises:
            TierError: A call does not end; nothing is forgotten.
        """

    @abstractmethod
    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""

    @abstractmethod
    def take_copies(self) -> Copies:
        """Return what calls have moved since the last call of this."""

    @abstractmethod
    def wait_restored(self) -> None:
        """Wait until all that earlier processes left can be found."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; calls under way end first. A second call does nothing.

        Raises:
            TierError: A call does not end; it keeps the files.
        """

    @abstractmethod
    def _count_leading(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a chain are on SSD."""

    @abstractmethod
    def _load(self, chains: Sequence[Chain]) -> list[int]:
        """Fill pages of chains, all at once; return how many leading pages of each were filled."""

    @abstractmethod
    def _save(self, chains: Sequence[Chain]) -> list[int]:
        """Store pages of chains, all at once.

        Returns:
            How many leading pages of each are stored now; 0 as well if a block before them is not.
        """
