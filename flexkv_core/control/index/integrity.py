"""The invariants of a prefix index between any two calls, as code.

I1  A node's keys continue its parent's, the parent lists it under the first of them, and it has
    as many as the tier that holds the most of it.
I2  Every tier is closed under parent: it holds all of a node before any of a child, and all of
    it is ready before any of a child is.
I3  The leading blocks of an entry are ready, and writes cover the rest in chain order.
I4  `num_children` counts the entries below, alive or dead; `num_pins` counts leases.
I5  Every leaf that may be evicted is ordered by the policy of its tier.
I6  A dead entry is kept exactly as long as it, or one below it, is being read or written.
I7  Every slot of a tier is in one place: the pool (free, or retired when the tier shrank), a living
    entry, or a dead one.
I8  The blocks being written are exactly those of the reservations that have not ended.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from flexkv_core.control.index.node import Entry, Node, TierState, Write
from flexkv_core.control.index.radix import PrefixIndex
from flexkv_core.errors import IntegrityError
from flexkv_core.plan import SLOT_BYTES

__all__ = ["check_index"]


def check_index(index: PrefixIndex, pins: Mapping[Entry, int], writes: Collection[Write]) -> None:
    """Check `index` against the `pins` of all leases and the `writes` of all reservations.

    Raises:
        IntegrityError: An invariant does not hold.
    """
    for violation in _violations(index, pins, writes):
        raise IntegrityError(violation)


def _violations(
    index: PrefixIndex, pins: Mapping[Entry, int], writes: Collection[Write]
) -> Iterator[str]:
    """Yield a sentence for every violated invariant."""
    nodes = [index.root]
    for node in nodes:
        for first_key, child in node.children.items():
            nodes.append(child)
            yield from _node_violations(child, node, first_key)
    alive = [entry for node in nodes for entry in node.entries if entry is not None]
    dead = [entry for tier in index.tiers for entry in tier.dead]
    for entry in alive:
        yield from _entry_violations(entry)
    below = Counter(entry.parent for entry in alive + dead)
    for entry in alive + dead:
        if (entry.num_children, entry.num_pins) != (below[entry], pins.get(entry, 0)):
            yield f"I4: {entry} has {below[entry]} children and {pins.get(entry, 0)} leases"
    for entry in dead:
        if entry.is_alive or entry.is_freeable:
            yield f"I6: {entry} is listed as dead, but is alive or could be freed"
    unwritten = {write for entry in alive + dead for write in entry.writes if not write.is_written}
    if unwritten != set(writes):
        yield "I8: the blocks being written are not those of the open reservations"
    yield from _slot_violations(index.tiers, alive + dead)


def _node_violations(node: Node, parent: Node, first_key: bytes) -> Iterator[str]:
    """Check I1 of `node`, which `parent` lists under `first_key`."""
    if node.parent is not parent or node.start != parent.end or node.keys[0] != first_key:
        yield f"I1: the node at {node.start} is not where its parent lists it"
    if len(node.keys) != max(entry.num_blocks for entry in node.entries if entry is not None):
        yield f"I1: the node at {node.start} has keys that no tier holds"


def _entry_violations(entry: Entry) -> Iterator[str]:
    """Check I2, I3 and I5 of `entry`, which is alive."""
    parent = entry.parent
    if parent is None:
        return
    if not entry.is_alive or parent.end != entry.start or entry.start != entry.node.start:
        yield f"I2: {entry} does not begin where {parent} ends"
    if entry.node.parent is not parent.node:
        yield f"I2: {entry} and {parent} are not on one path"
    if entry.num_ready and parent.ready_end != entry.start:
        yield f"I2: {entry} is ready before {parent}"
    position = entry.ready_end
    for write in entry.writes:
        if max(write.first_block, entry.start) != position:
            yield f"I3: no write covers what is before block {write.first_block} of {entry}"
        position = min(write.end_block, entry.end)
    if position != entry.end or not entry.slots:
        yield f"I3: no write covers {entry} from block {position} on"
    if entry.is_evictable and entry not in entry.tier.policy:
        yield f"I5: {entry} is evictable, but its policy does not order it"


def _slot_violations(tiers: tuple[TierState, ...], entries: list[Entry]) -> Iterator[str]:
    """Check I7."""
    for pool in {id(tier.pool): tier.pool for tier in tiers}.values():
        slots = array("q", pool.free_slots() + pool.retired_slots())
        for entry in entries:
            if entry.tier.pool is pool:
                slots.frombytes(entry.slots)
        num_slots = pool.capacity_blocks + len(pool.retired_slots()) // SLOT_BYTES
        if sorted(slots) != list(range(num_slots)):
            yield f"I7: {len(slots)} slots are accounted for, expected each of {num_slots} once"
