"""Which blocks are worth writing to a tier that wears out."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence

from flexkv_core.block.types import BlockKey

__all__ = ["Admission"]

_WRITES_FOR_A_HIT = 16
"""Writes that one more hit may cost. Mooncake traces do as well with 12 to 24; see benchmarks."""


_SAMPLE_ONE_IN = 8
"""The shadows follow one key in so many: cheap, yet enough to tell the rules apart."""

_FIRST_TRUST, _MAX_TRUST = 1 / 4, 2
"""Writes that may go without a hit, as multiples of the capacity: at the start, and at most."""


class Admission:
    """Decides which leading blocks of a chain a tier should hold.

    With room, all of them. Without, one of two rules, whichever pays:

    - **second touch**: what was used before. Most blocks never are, so this saves most writes;
      but a block that comes back for the first time has to be computed again.
    - **write all**: as a plain LRU tier does. Worth its writes where the tier is large enough to
      still hold blocks when they come back.

    To see which one pays, both are simulated on one key in 8: a shadow for each rule holds the
    keys that an LRU tier under that rule would hold, and counts hits and writes. Each extra write
    costs write-all 1 trust, each extra hit earns it 16. It applies while its trust is positive.
    Trust starts at a quarter of the capacity and stays within plus and minus twice the capacity:
    it follows a lasting change of the load, and a short burst changes little.

    Memory: the keys of the last 2 to 4 x `capacity_blocks` different blocks, and in the shadows
    those of a quarter of the capacity; at most 800 bytes per block of capacity.

    Thread: scheduler thread only.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._seen = _SeenKeys(2 * capacity_blocks)
        num_sampled = max(1, capacity_blocks // _SAMPLE_ONE_IN)
        self._write_all = _Shadow(num_sampled)
        self._second_touch = _Shadow(num_sampled)
        self._max_trust = _MAX_TRUST * num_sampled
        self._trust = _FIRST_TRUST * num_sampled
        """Writes that write-all may still make in its shadow without earning a hit."""

    def touch(
        self, keys: Sequence[BlockKey], *, num_held: int, num_free: int, num_touched: int = 0
    ) -> int:
        """Note a use of a chain, and return how many leading blocks the tier should hold.

        Call it when the prompt of a request is first seen, and again as the request grows.

        Args:
            keys: The full blocks of the chain that are known now.
            num_held: Leading blocks in the tier or on their way there, which includes what an
                earlier call for the same request admitted.
            num_free: Slots of the tier that can be taken without evicting.
            num_touched: Length of `keys` in the last call for the same request, 0 in the first:
                a request that grows does not use its earlier blocks a second time.

        Returns:
            At least `num_held`; at most `len(keys)`, or the capacity if the chain is longer.

        Cost: O(keys that are new to the request), and O(log keys).
        """
        keys = keys[: self._capacity_blocks]
        num_seen = self._seen.add(keys)
        self._compare(keys[num_touched:], max(0, num_seen - num_touched))
        if self._trust > 0:
            return len(keys)
        num_deserved = num_seen if num_held >= num_touched else 0
        return min(max(num_deserved, num_held + num_free), len(keys))

    def _compare(self, keys: Sequence[BlockKey], num_seen: int) -> None:
        """Simulate a use of `keys`, of which the first `num_seen` come back; adjust the trust."""
        returning = _sample(keys[:num_seen])
        sample = returning + _sample(keys[num_seen:])
        all_hits, all_writes = self._write_all.touch(sample, len(sample))
        hits, writes = self._second_touch.touch(sample, len(returning))
        earned = _WRITES_FOR_A_HIT * (all_hits - hits) - (all_writes - writes)
        self._trust = max(-self._max_trust, min(self._trust + earned, self._max_trust))


class _SeenKeys:
    """The keys of the last chains, in two generations; each holds chains from their start on."""

    def __init__(self, max_generation_keys: int) -> None:
        self._max_generation_keys = max_generation_keys
        self._young: set[BlockKey] = set()
        self._old: set[BlockKey] = set()

    def add(self, keys: Sequence[BlockKey]) -> int:
        """Remember `keys`; return how many leading ones were remembered before."""
        num_young = _num_leading(keys, self._young)
        num_seen = max(num_young, _num_leading(keys, self._old))
        if len(self._young) + len(keys) - num_young > self._max_generation_keys:
            self._old, self._young, num_young = self._young, set(), 0
        self._young.update(keys[num_young:])
        return num_seen


class _Shadow:
    """The keys that an LRU tier would hold; tails are evicted first."""

    def __init__(self, capacity_keys: int) -> None:
        self._capacity_keys = capacity_keys
        self._held: OrderedDict[BlockKey, None] = OrderedDict()

    def touch(self, keys: Sequence[BlockKey], num_wanted: int) -> tuple[int, int]:
        """Use `keys`, and write the first `num_wanted`, or more while there is room.

        Returns:
            Hits and writes.
        """
        held = self._held
        num_wanted = max(num_wanted, self._capacity_keys - len(held))
        num_hits = num_writes = 0
        for position in range(len(keys) - 1, -1, -1):
            key = keys[position]
            if key in held:
                held.move_to_end(key)
                num_hits += 1
            elif position < num_wanted:
                held[key] = None
                num_writes += 1
        while len(held) > self._capacity_keys:
            held.popitem(last=False)
        return num_hits, num_writes


def _num_leading(keys: Sequence[BlockKey], known: Container[BlockKey]) -> int:
    """Return how many leading `keys` are `known`; none after an unknown one is."""
    return bisect_left(keys, x=True, key=lambda key: key not in known)


def _sample(keys: Sequence[BlockKey]) -> list[BlockKey]:
    """Return the keys that the shadows follow."""
    return [key for key in keys if key[0] % _SAMPLE_ONE_IN == 0]
