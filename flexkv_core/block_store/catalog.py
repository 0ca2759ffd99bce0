"""Which blocks are there: for the rank that writes them, or as another rank's files say."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

from typing_extensions import override

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.block_store.blocks import Chain
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.plan import EnginePages, StoredBlocks, TransferPlan, TransferResult

__all__ = ["Catalog", "FollowerCatalog"]


class Catalog(ABC):
    """Knows the blocks of one tier, plans how they are loaded, and forgets what turns out bad.

    Thread: any. No method waits for blocks to be moved.
    """

    @abstractmethod
    def count_found(self, keys: Sequence[BlockKey], first_block: int) -> int:
        """Return how many blocks of a chain are there from `first_block` on, without a gap."""

    @abstractmethod
    def find_single(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Tell for each of some blocks that stand alone whether it is there."""

    def cut(self, chains: Sequence[Chain]) -> Sequence[Chain]:
        """Cut chains that are held in parts, so that each can be loaded; by default none is."""
        return chains

    @abstractmethod
    def plan_loads(
        self, chains: Sequence[Chain], deadline_s: float
    ) -> Sequence[TransferPlan | None]:
        """Plan to fill the leading pages of each chain whose blocks are there; None for none."""

    @abstractmethod
    def end_loads(
        self, chains: Sequence[Chain], results: Sequence[TransferResult | None]
    ) -> list[int]:
        """End plans; return how many leading pages of each chain were filled."""

    @abstractmethod
    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; nothing is being moved. See `SsdTier.begin_generation`."""

    @abstractmethod
    def resize(self, quota_bytes: int) -> None:
        """Use no more than `quota_bytes` from here on."""

    @abstractmethod
    def take_counts(self) -> dict[str, float]:
        """Return what changed of `metrics.METRICS` since the last call."""

    @abstractmethod
    def wait_restored(self) -> None:
        """Wait until all that earlier processes left can be found."""

    @abstractmethod
    def close(self) -> None:
        """Close the tier; a second call does nothing."""


class FollowerCatalog(Catalog):
    """The blocks that another rank of the engine writes; there is nothing to index or to evict.

    It may lag behind the writer: engines go by the rank that finds the fewest blocks.

    Thread: any.
    """

    def __init__(self, tier: Follower) -> None:
        """Take over the tier."""
        self._tier = tier
        self._job_ids = map(JobId, itertools.count(1))

    @override
    def count_found(self, keys: Sequence[BlockKey], first_block: int) -> int:
        return self._tier.count_leading(keys[first_block:])

    @override
    def find_single(self, keys: Sequence[BlockKey]) -> list[bool]:
        return [self._tier.count_leading([key]) == 1 for key in keys]

    @override
    def plan_loads(
        self, chains: Sequence[Chain], deadline_s: float
    ) -> Sequence[TransferPlan | None]:
        return [self._plan(chain, deadline_s) for chain in chains]

    @override
    def end_loads(
        self, chains: Sequence[Chain], results: Sequence[TransferResult | None]
    ) -> list[int]:
        return [0 if result is None else result.num_blocks for result in results]

    @override
    def reset(self, *, keeps_name: bool) -> None:
        """Forget every block; the writer does so, too."""
        self._tier.begin_generation()

    @override
    def resize(self, quota_bytes: int) -> None:
        """Do nothing: the writer has the room."""

    @override
    def take_counts(self) -> dict[str, float]:
        return self._tier.take_counts()

    @override
    def wait_restored(self) -> None:
        """Return at once: what the writer has restored is found with the next call."""

    @override
    def close(self) -> None:
        self._tier.close()

    def _plan(self, chain: Chain, deadline_s: float) -> TransferPlan | None:
        first = chain.first_block
        num_blocks = self.count_found(chain.keys, first)
        if not num_blocks:
            return None
        parent = chain.keys[first - 1] if first else None
        return TransferPlan(
            job_id=next(self._job_ids),
            source=StoredBlocks(self._tier.name, chain.keys[first:][:num_blocks], parent),
            target=EnginePages(chain.page_ids[:num_blocks]),
            num_blocks=num_blocks,
            deadline_s=deadline_s,
        )
