"""The contract of a tier that keeps blocks outside host memory: SSD, remote stores.

The host tier is not one of these: it *is* the memory (`tiers.host`), and these copy into and out
of it. `flexkv_core.testing.tier_contract` is the same contract as a test class.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from flexkv_core.block.types import BlockKey
from flexkv_core.plan import Status

__all__ = ["Capabilities", "Tier", "TierBlock"]


class Capabilities(msgspec.Struct, frozen=True):
    """What a tier can do beyond the contract."""

    durable: bool = False
    """Blocks outlive the process."""


class TierBlock(msgspec.Struct, frozen=True, array_like=True):
    """One rank's share of one block, and its slot in the tier's memory."""

    key: BlockKey
    parent: BlockKey | None
    slot: int
    """Of the `BlockMemory` that the tier was opened on."""


class Tier(ABC):
    """Keeps blocks by key; moves them between itself and the memory it was opened on.

    Thread: `read`, `write` and `delete` are called from lane threads, several at a time. They
    block, release the GIL while bytes move, and return by `deadline_s` (on `time.monotonic()`) or
    soon after. A failure is a status of the blocks it affects, never an exception; a tier that
    fails as a whole returns ERROR for every block.
    """

    name: str
    capabilities: Capabilities

    @abstractmethod
    def read(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        """Fill each block's slot in memory; return one status per block.

        Implementer must: verify the bytes before returning OK, and write nothing outside the
        block's own slot. After any other status the slot holds garbage and is not used. A read
        that was given up must never write into memory later.
        """

    @abstractmethod
    def write(self, blocks: Sequence[TierBlock], deadline_s: float | None) -> list[Status]:
        """Store each block; a key that is already stored is OK and is not written again.

        Implementer must: never make a block visible before all of it is written.
        """

    def snapshot(self) -> "Tier":
        """Return the tier that plans submitted now read and write, whenever they run.

        A tier that can be emptied at run time returns its current generation: blocks of plans made
        before a reset must not end up among those stored after it.
        """
        return self

    @abstractmethod
    def delete(self, keys: Sequence[BlockKey]) -> None:
        """Forget `keys`, even those that plans submitted before may still write.

        Unknown ones are ignored.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the tier's resources. Durable blocks stay. A second call does nothing."""
