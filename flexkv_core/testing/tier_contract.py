"""The contract of `Tier` as a test class: inherit it and say how to open a tier.

class TestMyTier(TierContract):
    @pytest.fixture
    def case(self, tmp_path):
        return MyCase(tmp_path)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flexkv_core.block.types import BlockKey
from flexkv_core.data.tiers.base import Tier, TierBlock
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.memory import BlockMemory, SlotMemory
from flexkv_core.plan import Status
from flexkv_core.testing.geometry import POISON

__all__ = ["TierCase", "TierContract"]

_NUM_SLOTS = 12
_BLOCK_BYTES = 8192


class TierCase(ABC):
    """A tier's storage, and how to reach it past the tier."""

    @abstractmethod
    def open(self, memory: BlockMemory) -> Tier:
        """Open a tier on the storage. It must know everything that is stored when it returns.

        Args:
            memory: What blocks are copied from and to.
        """

    @abstractmethod
    def corrupt(self, key: BlockKey) -> None:
        """Change a byte of a stored block without the tier's knowledge."""


class TierContract(ABC):
    """What every tier promises."""

    @pytest.fixture
    @abstractmethod
    def case(self) -> TierCase:
        """Make new, empty storage."""

    @pytest.fixture
    def region(self) -> Iterator[memoryview]:
        """Poisoned memory with room for `_NUM_SLOTS` blocks, on a page."""
        host = HostPool.create(_NUM_SLOTS, _BLOCK_BYTES)
        host.buffer[:] = bytes([POISON]) * len(host.buffer)
        yield host.buffer
        host.close()

    @pytest.fixture
    def memory(self, region: memoryview) -> BlockMemory:
        """Where blocks lie in `region`: a subclass may have them elsewhere."""
        return SlotMemory(region, _NUM_SLOTS, _BLOCK_BYTES, stride=_BLOCK_BYTES)

    @pytest.fixture
    def tier(self, case: TierCase, memory: BlockMemory) -> Iterator[Tier]:
        """An open tier on `memory`."""
        tier = case.open(memory)
        yield tier
        tier.close()

    def test_what_was_written_is_read_to_another_place(
        self, tier: Tier, memory: BlockMemory
    ) -> None:
        """Byte for byte, and several blocks in one call keep their order."""
        _fill(memory, 0, b"a")
        _fill(memory, 1, b"b")
        assert tier.write([_block(1, slot=0), _block(2, slot=1)], None) == [Status.OK] * 2
        assert tier.read([_block(2, slot=5), _block(1, slot=7)], None) == [Status.OK] * 2
        assert _content(b"b") == _slot(memory, 5)
        assert _content(b"a") == _slot(memory, 7)

    def test_a_read_writes_nothing_outside_its_places(
        self, tier: Tier, memory: BlockMemory, region: memoryview
    ) -> None:
        """The whole region is compared."""
        _fill(memory, 0, b"a")
        tier.write([_block(1, slot=0)], None)
        _fill(memory, 5, b"b")
        before = bytes(region)
        tier.read([_block(1, slot=5)], None)
        assert before != region
        _fill(memory, 5, b"b")
        assert before == region

    def test_a_write_leaves_the_region_alone(
        self, tier: Tier, memory: BlockMemory, region: memoryview
    ) -> None:
        """Its blocks may be loaded by the engine meanwhile."""
        _fill(memory, 0, b"a")
        before = bytes(region)
        tier.write([_block(1, slot=0)], None)
        assert before == region

    def test_an_unknown_block_is_a_miss_and_no_other_suffers(
        self, tier: Tier, memory: BlockMemory
    ) -> None:
        """Statuses are the blocks' own, in the order of the call."""
        _fill(memory, 0, b"a")
        tier.write([_block(1, slot=0)], None)
        blocks = [_block(8, slot=4), _block(1, slot=5), _block(9, slot=6)]
        assert tier.read(blocks, None) == [Status.MISS, Status.OK, Status.MISS]
        assert _content(b"a") == _slot(memory, 5)

    def test_no_blocks_are_no_work(self, tier: Tier) -> None:
        """An empty call answers with an empty list."""
        assert [] == tier.read([], None) == tier.write([], None)

    def test_a_block_that_is_there_is_not_written_again(
        self, tier: Tier, memory: BlockMemory
    ) -> None:
        """A key names its content, so the first bytes are as good, and a drive wears less."""
        _fill(memory, 0, b"a")
        tier.write([_block(1, slot=0)], None)
        _fill(memory, 0, b"b")
        assert tier.write([_block(1, slot=0)], None) == [Status.OK]
        tier.read([_block(1, slot=5)], None)
        assert _content(b"a") == _slot(memory, 5)

    def test_a_deleted_block_is_a_miss(self, tier: Tier) -> None:
        """Only that one; keys that are not there are ignored."""
        tier.write([_block(1, slot=0), _block(2, slot=1)], None)
        tier.delete([_key(1), _key(9)])
        assert tier.read([_block(1, slot=5), _block(2, slot=6)], None) == [Status.MISS, Status.OK]

    def test_changed_bytes_are_never_ok(self, case: TierCase, tier: Tier) -> None:
        """Whoever reads them would generate nonsense without noticing."""
        tier.write([_block(1, slot=0), _block(2, slot=1)], None)
        case.corrupt(_key(1))
        blocks = [_block(1, slot=5), _block(2, slot=6)]
        assert tier.read(blocks, None) == [Status.CORRUPT, Status.OK]

    def test_a_corrupt_block_can_be_stored_anew(self, case: TierCase, tier: Tier) -> None:
        """Delete, then write: the caller drops what it cannot read."""
        tier.write([_block(1, slot=0)], None)
        case.corrupt(_key(1))
        tier.delete([_key(1)])
        tier.write([_block(1, slot=0)], None)
        assert tier.read([_block(1, slot=5)], None) == [Status.OK]

    def test_a_call_past_its_deadline_answers_for_every_block(self, tier: Tier) -> None:
        """Being late is a status; what is answered as OK is good all the same."""
        past = 0.0
        allowed = {Status.OK, Status.TIMEOUT}
        blocks = [_block(1, slot=0), _block(2, slot=1)]
        tier.write(blocks, None)
        assert len(blocks) == len(tier.read(blocks, past))
        assert allowed >= {*tier.read(blocks, past), *tier.write(blocks, past)}

    def test_several_threads_read_and_write_at_once(self, tier: Tier, memory: BlockMemory) -> None:
        """Each gets back what it wrote."""

        def round_trip(slot: int) -> bytes:
            _fill(memory, slot, bytes([slot]))
            written = tier.write([_block(slot, slot=slot)], None)
            _fill(memory, slot, b"?")
            read = tier.read([_block(slot, slot=slot)], None)
            return bytes(written + read) + _slot(memory, slot)

        with ThreadPoolExecutor(4) as threads:
            contents = list(threads.map(round_trip, range(_NUM_SLOTS)))
        both_ok = bytes([Status.OK, Status.OK])
        assert [both_ok + _content(bytes([slot])) for slot in range(_NUM_SLOTS)] == contents

    def test_a_closed_tier_answers_error_for_every_block(self, tier: Tier) -> None:
        """It fails as a whole, by status."""
        tier.write([_block(1, slot=0)], None)
        tier.close()
        blocks = [_block(1, slot=5), _block(2, slot=6)]
        assert [Status.ERROR] * 2 == tier.read(blocks, None) == tier.write(blocks, None)

    def test_closing_twice_is_closing_once(self, tier: Tier) -> None:
        """Shutdown paths cross."""
        tier.close()
        tier.close()

    def test_a_durable_tier_finds_its_blocks_again(
        self, case: TierCase, tier: Tier, memory: BlockMemory
    ) -> None:
        """What was stored outlives the tier object."""
        if not tier.capabilities.durable:
            pytest.skip(f"tier {tier.name} is not durable")
        _fill(memory, 0, b"a")
        tier.write([_block(1, slot=0)], None)
        tier.close()
        reopened = case.open(memory)
        assert reopened.read([_block(1, slot=5)], None) == [Status.OK]
        assert _content(b"a") == _slot(memory, 5)
        reopened.close()


def _key(number: int) -> BlockKey:
    return BlockKey(bytes([number]) * 32)


def _block(number: int, slot: int) -> TierBlock:
    return TierBlock(_key(number), parent=None, slot=slot)


def _content(pattern: bytes) -> bytes:
    return pattern * _BLOCK_BYTES


def _slot(memory: BlockMemory, slot: int) -> bytes:
    return b"".join(memory.pieces(slot))


def _fill(memory: BlockMemory, slot: int, pattern: bytes) -> None:
    for piece in memory.pieces(slot):
        piece[:] = pattern * len(piece)
