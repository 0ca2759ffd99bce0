"""The free places of one tier."""

from array import array

__all__ = ["SLOT_BYTES", "SlotPool"]

SLOT_BYTES = 8
"""Size of one slot number: slots travel as packed native int64 and never become Python ints."""


class SlotPool:
    """A stack of free slot numbers, all of `range(capacity_blocks)` at first.

    Thread: scheduler thread only. Cost: one copy of 8 bytes a slot.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._free = bytearray(array("q", range(capacity_blocks)).tobytes())

    @property
    def num_free(self) -> int:
        """Slots that `take` can give."""
        return len(self._free) // SLOT_BYTES

    @property
    def num_used(self) -> int:
        """Slots that were taken and not given back."""
        return self.capacity_blocks - self.num_free

    def take(self, num_blocks: int) -> bytes:
        """Return `num_blocks` slots. The caller has asked `num_free` before."""
        start = len(self._free) - num_blocks * SLOT_BYTES
        assert start >= 0
        slots = bytes(memoryview(self._free)[start:])
        del self._free[start:]
        return slots

    def give(self, slots: bytes | bytearray) -> None:
        """Take back `slots`."""
        self._free += slots
        assert len(self._free) <= self.capacity_blocks * SLOT_BYTES

    def free_slots(self) -> bytes:
        """Return every free slot, for checks."""
        return bytes(self._free)
