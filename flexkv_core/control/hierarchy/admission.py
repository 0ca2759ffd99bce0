"""Which blocks are worth writing to a tier that wears out."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence

from flexkv_core.block.types import BlockKey

__all__ = ["Admission"]

_WRITES_FOR_A_HIT = 16
"""What one more hit may cost. From 12 to 24 the Mooncake traces fare alike; see benchmarks."""

_SAMPLE_ONE_IN = 8
"""Keys that the shadows follow: few enough to cost little, enough to tell the rules apart."""

_FIRST_TRUST, _MAX_TRUST = 1 / 4, 2
"""Writes without a hit for them, in capacities: before anything is known, and at most."""


class Admission:
    """Decides which leading blocks of a chain a tier should hold.

    With room, all of them. Without, one of two rules, whichever pays:

    - **second touch**: what was used before. Most blocks never are, so this saves most writes;
      but a block that comes back for the first time has to be computed again.
    - **write all**: as a plain LRU tier does. Worth its writes where the tier is so large that
      blocks still lie there when they come back.

    To see which one pays, both are played through on one key in 8: a shadow for each rule holds
    the keys that an LRU tier under it would hold, and counts hits and writes. Every block that
    write-all writes more costs trust, every hit that it has more earns it back 16 times. It rules
    while it is trusted. Trust begins at the writes of a quarter of the tier and stays between
    plus and minus twice the tier: so fast is a change of the load followed, and a short burst
    changes little.

    Remembered are the keys of the last 2 to 4 x `capacity_blocks` different blocks, and in the
    shadows those of a quarter of it: at most 800 bytes for a block of capacity.

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
        """Writes that write-all may still make in its shadow without a hit for them."""

    def touch(
        self, keys: Sequence[BlockKey], *, num_held: int, num_free: int, num_touched: int = 0
    ) -> int:
        """Note a use of a chain, and return how many leading blocks the tier should hold.

        Call it when the prompt of a request is first seen, and again as the request grows.

        Args:
            keys: The full blocks of the chain that are known now.
            num_held: Leading blocks in the tier or on their way there. What an earlier call for
                the same request has admitted is on its way.
            num_free: Slots of the tier that can be taken without evicting.
            num_touched: Length of `keys` in the last call for the same request, 0 in the first:
                that a request grows is no second use of what it has.

        Returns:
            From `num_held` up to `len(keys)`, or to the capacity where the chain is longer.

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
        """Play a use of `keys`, of which the first `num_seen` come back, through in the shadows."""
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
    """The keys that a least recently used tier would hold; tails leave first."""

    def __init__(self, capacity_keys: int) -> None:
        self._capacity_keys = capacity_keys
        self._held: OrderedDict[BlockKey, None] = OrderedDict()

    def touch(self, keys: Sequence[BlockKey], num_wanted: int) -> tuple[int, int]:
        """Use `keys`, and write the first `num_wanted`, or more with room.

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
    """Return how many leading `keys` are `known`, where nothing is known behind an unknown one."""
    return bisect_left(keys, x=True, key=lambda key: key not in known)


def _sample(keys: Sequence[BlockKey]) -> list[BlockKey]:
    """Return the keys that the shadows follow."""
    return [key for key in keys if key[0] % _SAMPLE_ONE_IN == 0]
