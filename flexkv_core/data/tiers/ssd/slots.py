"""The slots of one slab: which key is where, what is free, what is in use."""

from collections.abc import Iterable

from flexkv_core.block.types import BlockKey

__all__ = ["SlotTable"]


class SlotTable:
    """Key -> slot, and the state of every slot. Not thread safe: its column's lock guards it.

    A slot is free or taken. It stays taken while a call has it pinned, whatever happens to its key,
    so bytes that are being read or written are never overwritten.
    """

    def __init__(self, num_slots: int) -> None:
        """Begin with `num_slots` slots of unknown content: taken, without a key."""
        self.num_free = 0
        self._taken = bytearray(b"\1" * num_slots)  # 0 for a free slot: bytearray.find finds runs
        self._cursor = 0
        self._slots: dict[BlockKey, int] = {}
        self._num_pins: dict[int, int] = {}
        self._released: set[int] = set()

    def __len__(self) -> int:
        """Count all slots."""
        return len(self._taken)

    @property
    def is_idle(self) -> bool:
        """Whether no call uses a slot."""
        return not self._num_pins

    def grow(self, num_slots: int) -> None:
        """Add `num_slots` free slots at the end."""
        self._taken += bytes(num_slots)
        self.num_free += num_slots

    def cut(self, num_slots: int) -> bool:
        """Remove all but the first `num_slots`; False, changing nothing, if one is in use."""
        if any(slot >= num_slots for slot in self._num_pins):
            return False
        for key in [key for key, slot in self._slots.items() if slot >= num_slots]:
            self.forget(key)
        self.num_free -= self._taken.count(0, num_slots)
        del self._taken[num_slots:]
        return True

    def find(self, key: BlockKey) -> int | None:
        """Return the slot of `key`."""
        return self._slots.get(key)

    def places(self) -> list[tuple[BlockKey, int]]:
        """Return all keys, and their slots."""
        return list(self._slots.items())

    def take(self, num_slots: int) -> range:
        """Take and pin adjacent free slots, as many of `num_slots` as are easily found.

        They become free again when unpinned, unless `publish` has been called. A chain that is
        written in one run is read in one run.
        """
        length = min(num_slots, self.num_free)
        while length:
            start = self._find_free(length)
            if start >= 0:
                return self._take(range(start, start + length))
            length //= 2
        return range(0)

    def publish(self, key: BlockKey, slot: int) -> None:
        """Make `key` findable in `slot`, which is taken."""
        self._slots[key] = slot
        self._released.discard(slot)

    def forget(self, key: BlockKey) -> None:
        """Release the slot of `key`, if there is one."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.release(slot)

    def release(self, slot: int) -> None:
        """Free `slot` as soon as no call uses it."""
        if slot in self._num_pins:
            self._released.add(slot)
        else:
            self._taken[slot] = 0
            self.num_free += 1

    def pin(self, slots: Iterable[int]) -> None:
        """Note one more call that uses `slots`."""
        for slot in slots:
            self._num_pins[slot] = self._num_pins.get(slot, 0) + 1

    def unpin(self, slots: Iterable[int]) -> None:
        """Undo a `pin`."""
        for slot in slots:
            self._num_pins[slot] -= 1
            if self._num_pins[slot] == 0:
                del self._num_pins[slot]
                if slot in self._released:
                    self._released.remove(slot)
                    self.release(slot)

    def _find_free(self, length: int) -> int:
        """Return where `length` free slots begin, searching after the last ones taken first."""
        run = bytes(length)
        start = self._taken.find(run, self._cursor)
        return start if start >= 0 else self._taken.find(run)

    def _take(self, slots: range) -> range:
        self._taken[slots.start : slots.stop] = b"\1" * len(slots)
        self.num_free -= len(slots)
        self._cursor = slots.stop
        self._released.update(slots)
        self.pin(slots)
        return slots
