"""The free slots of one tier."""

from array import array

from flexkv_core.plan import SLOT_BYTES

__all__ = ["SlotPool"]


class SlotPool:
    """A stack of free slot numbers, all of `range(capacity_blocks)` at first.

    Thread: scheduler thread only. Cost: one copy of 8 bytes a slot.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._free = bytearray(array("q", range(capacity_blocks)).tobytes())
        self._retired = bytearray()
        """Slots withdrawn because the tier shrank, the most recent last."""

    @property
    def num_free(self) -> int:
        """Slots that `take` can return."""
        return len(self._free) // SLOT_BYTES

    @property
    def num_used(self) -> int:
        """Slots that were taken and not given back."""
        return self.capacity_blocks - self.num_free

    def take(self, num_blocks: int) -> bytes:
        """Return `num_blocks` slots. The caller has checked `num_free`."""
        start = len(self._free) - num_blocks * SLOT_BYTES
        assert start >= 0
        slots = bytes(memoryview(self._free)[start:])
        del self._free[start:]
        return slots

    def give(self, slots: bytes | bytearray) -> None:
        """Take back `slots`."""
        self._free += slots
        assert len(self._free) <= self.capacity_blocks * SLOT_BYTES

    def resize(self, capacity_blocks: int) -> None:
        """Add slots, or retire free ones, to get as close to `capacity_blocks` as possible."""
        num_more = capacity_blocks - self.capacity_blocks
        if num_more < 0:
            num_more = -min(-num_more, self.num_free)
            self._retired += self.take(-num_more)
        elif num_more > 0:
            self._enlarge(num_more)
        self.capacity_blocks += num_more

    def _enlarge(self, num_more: int) -> None:
        num_bytes = min(num_more * SLOT_BYTES, len(self._retired))
        num_created = self.capacity_blocks + len(self._retired) // SLOT_BYTES
        start = len(self._retired) - num_bytes
        self._free += self._retired[start:]
        del self._retired[start:]
        end = num_created + num_more - num_bytes // SLOT_BYTES
        self._free += array("q", range(num_created, end)).tobytes()

    def free_slots(self) -> bytes:
        """Return every free slot, for checks."""
        return bytes(self._free)

    def retired_slots(self) -> bytes:
        """Return every retired slot, for checks."""
        return bytes(self._retired)
