"""What holds of a prefix index between any two calls, as code.

I1  A node's keys follow its parent's, it is found under the first of them, and it has as many as
    the tier that holds most of it.
I2  Every tier is closed under parent: it holds all of a node before any of a child, and all of
    it is ready before any of a child is.
I3  Of the blocks held the first are ready, and writes cover the rest in chain order.
I4  `num_children` counts the entries below, alive or dead; `num_pins` counts leases.
I5  Every leaf that may be evicted is ordered by the policy of its tier.
I6  A dead entry is kept exactly as long as it, or one below it, is read or written.
I7  Every slot of a tier is in one place: the pool (free, or retired when the tier shrank), a living
    entry, or a dead one.
I8  The blocks being written are those of the reservations that have not ended.
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
    """Check `index`, on which leases hold `pins` and reservations will end `writes`.

    Raises:
        IntegrityError: An invariant does not hold.
    """
    for violation in _violations(index, pins, writes):
        raise IntegrityError(violation)


def _violations(
    index: PrefixIndex, pins: Mapping[Entry, int], writes: Collection[Write]
) -> Iterator[str]:
    """Yield a sentence for everything that does not hold."""
    nodes = [index.root]
    for node in nodes:
        for first_key, child in node.children.items():
            nodes.append(child)
            yield from _node_violations(child, node, first_key)
    alive = [held for node in nodes for held in node.entries if held is not None]
    dead = [held for tier in index.tiers for held in tier.dead]
    for held in alive:
        yield from _entry_violations(held)
    below = Counter(held.parent for held in alive + dead)
    for held in alive + dead:
        if (held.num_children, held.num_pins) != (below[held], pins.get(held, 0)):
            yield f"I4: {held} has {below[held]} children and {pins.get(held, 0)} leases"
    for held in dead:
        if held.is_alive or held.is_freeable:
            yield f"I6: {held} is among the dead and need not be"
    unwritten = {write for held in alive + dead for write in held.writes if not write.is_written}
    if unwritten != set(writes):
        yield "I8: the blocks being written are not those of the open reservations"
    yield from _slot_violations(index.tiers, alive + dead)


def _node_violations(node: Node, parent: Node, first_key: bytes) -> Iterator[str]:
    """Check I1 of `node`, which `parent` has under `first_key`."""
    if node.parent is not parent or node.start != parent.end or node.keys[0] != first_key:
        yield f"I1: the node at {node.start} is not where its parent has it"
    if len(node.keys) != max(held.num_blocks for held in node.entries if held is not None):
        yield f"I1: the node at {node.start} has keys that no tier holds"


def _entry_violations(held: Entry) -> Iterator[str]:
    """Check I2, I3 and I5 of `held`, which is alive."""
    parent = held.parent
    if parent is None:
        return
    if not held.is_alive or parent.end != held.start or held.start != held.node.start:
        yield f"I2: {held} is not behind all of {parent}"
    if held.node.parent is not parent.node:
        yield f"I2: {held} and {parent} are not on one path"
    if held.num_ready and parent.ready_end != held.start:
        yield f"I2: {held} is ready before {parent}"
    position = held.ready_end
    for write in held.writes:
        if max(write.first_block, held.start) != position:
            yield f"I3: nobody writes what is before block {write.first_block} of {held}"
        position = min(write.end_block, held.end)
    if position != held.end or not held.slots:
        yield f"I3: nobody writes what is behind block {position} of {held}"
    if held.is_evictable and held not in held.tier.policy:
        yield f"I5: {held} can be evicted and will never be"


def _slot_violations(tiers: tuple[TierState, ...], entries: list[Entry]) -> Iterator[str]:
    """Check I7."""
    for pool in {id(tier.pool): tier.pool for tier in tiers}.values():
        slots = array("q", pool.free_slots() + pool.retired_slots())
        for held in entries:
            if held.tier.pool is pool:
                slots.frombytes(held.slots)
        num_slots = pool.capacity_blocks + len(pool.retired_slots()) // SLOT_BYTES
        if sorted(slots) != list(range(num_slots)):
            yield f"I7: {len(slots)} slots are somewhere, expected each of {num_slots}"
