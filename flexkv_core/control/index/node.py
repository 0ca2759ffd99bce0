"""The parts of the prefix index: runs of keys, what each tier holds of them, who writes them.

A `Node` is a run of keys that no chain leaves in the middle. An `Entry` is what one tier holds of
one node, always a prefix of its run. All positions are counted from the start of the chain, so
nothing that names a position changes when a node is split.

The life of an entry, from the first block on:

    [ ready ][ written, waiting for a block before it ][ being written ] | not in this tier

- **grow**: a reservation (`Write`) appends slots after everything that is held or being written,
  over as many nodes as it needs, so the writes of an entry are in chain order and touch. A
  second reservation that covers blocks being written gets only the blocks after them.
- **publish**: when all ranks have written, the blocks become ready as far as everything before
  them is; a write that ends before its predecessor waits as `is_written`, and the predecessor
  publishes both.
- **fail**: a block that was not written is dropped with everything after it, in its tier only.
- **split**: the new node is the *upper* part and the old object stays the lower one. The same
  holds for an entry that reaches past the cut: pins, policy entries and the deepest entry
  of a write stay on the deeper part, the upper one is held by having a child. An entry that
  ends before the cut moves up whole. Writes on both sides are listed by both.
- **die**: evicted, failed, dropped or reset entries leave their node at once and can never be
  found again. The slots of a dead entry go back to the pool when nothing needs them: no pins,
  no child (dead or alive) left, and every write into it has been reported. Until then it keeps its
  parent from being evicted, since a reader may still need both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from flexkv_core.block.types import BlockKey
from flexkv_core.control.eviction.base import EvictionPolicy
from flexkv_core.control.index.slot_pool import SlotPool
from flexkv_core.plan import SLOT_BYTES

__all__ = ["ChainEnd", "Entry", "Node", "TierState", "Write"]


@dataclass(slots=True, eq=False)
class TierState:
    """One tier: its slots, its eviction order, and what has left it."""

    index: int
    """Place in `Node.entries`."""

    name: str
    addressed_by: Literal["slot", "key"]
    pool: SlotPool
    policy: EvictionPolicy["Entry"]
    dead: dict["Entry", list[BlockKey]] = field(default_factory=dict)
    """Entries that can no longer be found but are still read or written, with the keys of their
    blocks if the tier is addressed by key."""

    gone: list[BlockKey] = field(default_factory=list)
    """Keys whose bytes are no longer needed, if the tier is addressed by key."""

    def keys_of(self, entry: "Entry", first: int = 0) -> list[BlockKey]:
        """Return the keys of `entry`'s blocks from `first` on, if the tier is addressed by key."""
        if self.addressed_by == "slot":
            return []
        return entry.node.keys[first : entry.num_blocks]


@dataclass(slots=True, eq=False)
class Node:
    """A run of block keys, in at least one tier; only the root is empty.

    Keys are chain hashes: two chains that share a key share everything before it.
    """

    start: int
    """Position of the first key in its chain."""

    keys: list[BlockKey]
    parent: "Node | None"
    entries: list["Entry | None"]
    children: dict[BlockKey, "Node"] = field(default_factory=dict)
    """By the first key of the child."""

    version: int = 0
    """Changes when a chain that leaves the tree in this node may leave it elsewhere."""

    @property
    def end(self) -> int:
        """One past the position of the last key."""
        return self.start + len(self.keys)

    def shared_end(self, keys: Sequence[BlockKey]) -> int:
        """Return where the chain `keys`, which shares the first key, diverges from this one.

        Equality inside a run is monotone, as it is over a whole chain: a binary search.
        """
        low, high = 1, min(len(self.keys), len(keys) - self.start)
        while low < high:
            middle = (low + high + 1) // 2
            if self.keys[middle - 1] == keys[self.start + middle - 1]:
                low = middle
            else:
                high = middle - 1
        return self.start + low

    def split(self, position: int) -> "Node":
        """Cut in two at `position` of the chain and return the new upper part."""
        assert self.parent is not None
        num_keys = position - self.start
        upper = Node(self.start, self.keys[:num_keys], self.parent, list(self.entries))
        del self.keys[:num_keys]
        self.parent.children[upper.keys[0]] = upper
        upper.children[self.keys[0]] = self
        self.start, self.parent = position, upper
        self.version += 1
        for index, entry in enumerate(self.entries):
            if entry is None:
                continue
            if entry.end > position:
                upper.entries[index] = entry.split(upper)
            else:
                entry.node, self.entries[index] = upper, None
        return upper

    def trim(self) -> None:
        """Forget the keys that no tier holds, and leave the tree if none is left."""
        self.version += 1
        num_keys = 0
        for entry in self.entries:
            if entry is not None:
                num_keys = max(num_keys, entry.num_blocks)
        if num_keys:
            del self.keys[num_keys:]
        else:
            assert self.parent is not None
            del self.parent.children[self.keys[0]]


@dataclass(slots=True, eq=False)
class Entry:
    """The leading blocks of one node that one tier holds; its states are described above."""

    tier: TierState
    node: Node
    parent: "Entry | None"
    start: int
    """Position of the first block in its chain; equal to the node's while alive."""

    slots: bytearray = field(default_factory=bytearray)
    """Packed int64, one for each block held or being written."""

    num_ready: int = 0
    """Leading blocks that a match may use."""

    writes: list["Write"] = field(default_factory=list)
    """The writes that cover the blocks after the ready ones, in chain order."""

    num_pins: int = 0
    num_children: int = 0
    """Entries that have this one as parent, dead ones included."""

    last_use: int = 0
    num_uses: int = 0
    is_alive: bool = True

    @property
    def num_blocks(self) -> int:
        """Blocks held or being written."""
        return len(self.slots) // SLOT_BYTES

    @property
    def end(self) -> int:
        """One past the position of the last block."""
        return self.start + self.num_blocks

    @property
    def ready_end(self) -> int:
        """One past the position of the last ready block."""
        return self.start + self.num_ready

    @property
    def first_key(self) -> BlockKey:
        """Key of the first block."""
        return self.node.keys[0]

    @property
    def is_evictable(self) -> bool:
        """Whether this is a leaf of its tier that is not in use."""
        held = self.num_pins or self.num_children or self.writes
        return self.is_alive and not held and self.parent is not None

    @property
    def is_freeable(self) -> bool:
        """Whether this is dead, its slots are not yet free, and nobody reads or writes them."""
        if self.num_pins or self.num_children or self not in self.tier.dead:
            return False
        return all(write.is_written for write in self.writes)

    def __repr__(self) -> str:
        return f"{self.tier.name}[{self.start}, ready to {self.ready_end}, to {self.end}]"

    def children(self) -> list["Entry"]:
        """Return the living entries directly below this one."""
        if not self.num_children:
            return []
        index = self.tier.index
        below = (child.entries[index] for child in self.node.children.values())
        return [child for child in below if child is not None]

    def subtree(self) -> list["Entry"]:
        """Return this entry and every living one below it, parents first."""
        subtree = [self]
        for parent in subtree:
            subtree += parent.children()
        return subtree

    def split(self, upper_node: Node) -> "Entry":
        """Cut where `upper_node` ends, and return the new upper part, which belongs to it."""
        position, num_upper = upper_node.end, len(upper_node.keys)
        upper = Entry(
            tier=self.tier,
            node=upper_node,
            parent=self.parent,
            start=self.start,
            slots=self.slots[: num_upper * SLOT_BYTES],
            num_ready=min(self.num_ready, num_upper),
            writes=[write for write in self.writes if write.first_block < position],
            num_children=1,
        )
        del self.slots[: num_upper * SLOT_BYTES]
        self.parent, self.start = upper, position
        self.num_ready -= upper.num_ready
        self.writes = [write for write in self.writes if write.end_block > position]
        for write in upper.writes:
            if write.entry is self and write.end_block <= position:
                write.entry = upper
        return upper

    def up_to(self, position: int) -> Iterator["Entry"]:
        """Yield this entry and its ancestors, up to the one that holds `position`."""
        entry = self
        while entry.start > position:
            yield entry
            assert entry.parent is not None
            entry = entry.parent
        yield entry

    def at(self, position: int) -> "Entry":
        """Return this entry or its ancestor, whichever holds `position`."""
        *_, entry = self.up_to(position)
        return entry


class ChainEnd(NamedTuple):
    """How much of a chain a tier holds, and where in the index that ends."""

    num_known: int
    """Leading blocks that are ready or being written."""

    entry: Entry
    """The one that they end in."""

    def node_in(self, keys: Sequence[BlockKey]) -> Node | None:
        """Return the deepest node of the chain `keys` that can be reached from here; None for none.

        The entry was of that chain once. It may have left since, or have been split, or cut and
        continued by another chain: so the key is compared.
        """
        if not (self.num_known and self.entry.is_alive):
            return None
        node = self.entry.at(self.num_known - 1).node
        return node if keys[node.start : node.start + 1] == node.keys[:1] else None


@dataclass(slots=True, eq=False)
class Write:
    """The blocks of one chain that one reservation writes on one tier."""

    first_block: int
    end_block: int
    """Moves back to the first dropped block, if any is dropped."""

    entry: Entry
    """The deepest entry it was made for; dead if blocks were dropped."""

    is_written: bool = False
    """Every owner has reported, or nothing will ever be written."""

    is_restored: bool = False
    """An earlier process has written it."""
