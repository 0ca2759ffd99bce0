"""Restores to the index what earlier processes left in a tier, in bounded steps."""

from collections.abc import Collection

from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.found_chains import FoundChain, FoundChains
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import Recorder
from flexkv_core.plan import TierReport

__all__ = ["Restorer"]

_BLOCKS_A_STEP = 4096
"""Adding 4096 blocks to the index takes about 1 ms, which a step can spare."""

_BLOCKS_A_CHAIN = 64
"""A chain of one new block takes the index as long as 64 blocks of a longer one."""


class Restorer:
    """Waits until every owner has reported what it found, then adds it to the index.

    Thread: scheduler thread only.
    """

    def __init__(
        self,
        manager: CacheManager,
        tier: str,
        owners: Collection[int],
        recorder: Recorder,
        *,
        keeps_fragments: bool = False,
    ) -> None:
        """Begin without reports; `keeps_fragments` as in `FoundChains`."""
        self._manager = manager
        self._tier = tier
        self._recorder = recorder
        self._found = FoundChains(owners, keeps_fragments=keeps_fragments)

    @property
    def is_over(self) -> bool:
        """Whether everything that was found has been restored or given up as useless."""
        return self._found.is_over

    def note(self, report: TierReport) -> None:
        """Add what one owner has found since its last report."""
        self._found.note(report)

    def step(self) -> list[BlockKey]:
        """Restore the next part; return blocks that are of no use."""
        num_blocks = 0
        useless: list[BlockKey] = []
        while num_blocks < _BLOCKS_A_STEP and (chain := self._found.next_chain()):
            num_blocks += len(chain.keys) - chain.num_given + _BLOCKS_A_CHAIN
            useless += self._restore(chain)
        if num_blocks < _BLOCKS_A_STEP:
            useless += self._found.take_useless(_BLOCKS_A_STEP)
        return useless

    def _restore(self, chain: FoundChain) -> list[BlockKey]:
        """Restore the new blocks of `chain`, unless the blocks before them have left the index."""
        keys, num_known = chain
        if self._manager.lookup(keys, tier=self._tier).num_known >= num_known:
            num_known = self._manager.restore(keys, tier=self._tier)
        self._recorder.add("restored_blocks", num_known - chain.num_given)
        return keys[num_known:]
