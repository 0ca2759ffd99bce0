"""Restores to the index what earlier processes left in a tier, in bounded steps."""

from collections.abc import Collection

from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.found_chains import FoundChains, FoundRun
from flexkv_core.control.index.node import ChainEnd
from flexkv_core.control.manager import CacheManager
from flexkv_core.metrics import Recorder
from flexkv_core.plan import TierReport

__all__ = ["Restorer"]

_BLOCKS_A_STEP = 2048
"""Adding as many to the index takes about 1 ms, which a step can spare (one core of an AMD EPYC
virtual machine, November 2026)."""

_BLOCKS_A_RUN = 32
"""A run of one block takes the index as long as 32 blocks of a longer one."""


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

    @property
    def can_proceed(self) -> bool:
        """Whether another step brings more to restore, or restores it."""
        return self._found.can_proceed

    def note(self, report: TierReport) -> None:
        """Add what one owner has found since its last report."""
        self._found.note(report)

    def step(self) -> list[BlockKey]:
        """Restore the next part; return blocks that are of no use."""
        num_blocks = 0
        useless: list[BlockKey] = []
        while num_blocks < _BLOCKS_A_STEP and (run := self._found.next_run()):
            num_blocks += len(run.keys) + _BLOCKS_A_RUN
            useless += self._restore(run)
        if num_blocks < _BLOCKS_A_STEP:
            useless += self._found.take_useless(_BLOCKS_A_STEP)
        return useless

    def _restore(self, run: FoundRun) -> list[BlockKey]:
        """Restore `run`, unless the blocks before it have left the index; return what was not."""
        run.place = self._manager.restore(
            self._found.chain, tier=self._tier, first_block=run.start, near=_place_before(run)
        )
        num_blocks = max(0, run.place.num_known - run.start)
        self._recorder.add("restored_blocks", num_blocks)
        return run.keys[num_blocks:]


def _place_before(run: FoundRun) -> ChainEnd | None:
    """Return the nearest known place before `run` that is still in the index."""
    before = run.before
    while before and not (before.place and before.place.entry.is_alive):
        before = before.before
    place = before.place if before else None
    if run.before:
        run.before.place = place  # the next run after it need not look again
    return place
