"""The parts of the prefix index: runs of keys, what each tier holds of them, who writes them.

A `Node` is a run of keys that no chain leaves in the middle. A `Residency` is what one shelf (one
cache group of one tier) holds of one node, always a prefix of its run. All positions are counted
from the start of the chain, so nothing that names a position changes when a node is split.

The life of a residency, from the first block on:

    [ ready ][ written, waiting for a block before it ][ being written ] | not in this tier

- **grow**: a reservation (`Write`) appends slots behind everything that is held or being written,
  over as many nodes as it needs, so the writes of a residency are in chain order and touch. A
  second reservation of blocks that somebody writes gets only what lies behind them.
- **publish**: when all ranks have written, the blocks become ready as far as everything before
  them is; a write that ends first waits as `is_written`, and its predecessor publishes both.
- **fail**: a block that was not written takes everything behind it along, in its shelf only.
- **split**: the new node is the *upper* part and the old object stays the lower one. The same
  holds for a residency that reaches past the cut: pins, policy entries and the deepest residency
  of a write stay on the deeper part, the upper one is held by having a child. A residency that
  ends before the cut moves up whole. Writes on both sides are listed by both.
- **die**: evicted, failed, dropped or reset residencies leave their node at once and can never be
  found again. The slots of a dead residency go back to the pool when nothing needs them: no pins,
  no child (dead or alive) left, and every write into it has been reported. Until then it keeps its
  parent from being evicted, for a reader may still need both. A dead one never lives again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flexkv_core.eviction.base import EvictionPolicy
from flexkv_core.index.slot_pool import SLOT_BYTES, SlotPool
from flexkv_core.types import BlockKey, JobId

__all__ = ["Node", "Residency", "Shelf", "Write"]


@dataclass(slots=True, eq=False)
class Shelf:
    """One cache group of one tier. The groups of a tier share its pool and its policy."""

    index: int
    """Place in `Node.residencies`."""

    tier: str
    group: int
    addressed_by: Literal["slot", "key"]
    pool: SlotPool
    policy: EvictionPolicy["Residency"]
    dead: dict["Residency", list[BlockKey]] = field(default_factory=dict)
    """Residencies that nobody can find and somebody still reads or writes, with the keys of their
    blocks where plans name blocks by key."""

    gone: list[BlockKey] = field(default_factory=list)
    """Keys, where plans name blocks by key, whose bytes nobody needs any more."""

    def keys_of(self, residency: "Residency", first: int = 0) -> list[BlockKey]:
        """Return the keys of `residency`'s blocks from `first` on, if plans name blocks by key."""
        if self.addressed_by == "slot":
            return []
        return residency.node.keys[first : residency.num_blocks]


@dataclass(slots=True, eq=False)
class Node:
    """A run of block keys, in at least one tier; only the root is empty.

    Keys are chain hashes: where a key of two chains is equal, everything before it is.
    """

    start: int
    """Position of the first key in its chain."""

    keys: list[BlockKey]
    parent: "Node | None"
    residencies: list["Residency | None"]
    children: dict[BlockKey, "Node"] = field(default_factory=dict)
    """By the first key of the child."""

    @property
    def end(self) -> int:
        """Position behind the last key."""
        return self.start + len(self.keys)

    def shared_end(self, keys: Sequence[BlockKey]) -> int:
        """Return where the chain `keys`, which shares the first key, parts from this one.

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
        upper = Node(self.start, self.keys[:num_keys], self.parent, list(self.residencies))
        del self.keys[:num_keys]
        self.parent.children[upper.keys[0]] = upper
        upper.children[self.keys[0]] = self
        self.start, self.parent = position, upper
        for index, residency in enumerate(self.residencies):
            if residency is None:
                continue
            if residency.end > position:
                upper.residencies[index] = residency.split(upper)
            else:
                residency.node, self.residencies[index] = upper, None
        return upper

    def trim(self) -> None:
        """Forget the keys that no shelf holds, and leave the tree if none is left."""
        num_keys = 0
        for residency in self.residencies:
            if residency is not None:
                num_keys = max(num_keys, residency.num_blocks)
        if num_keys:
            del self.keys[num_keys:]
        else:
            assert self.parent is not None
            del self.parent.children[self.keys[0]]


@dataclass(slots=True, eq=False)
class Residency:
    """The leading blocks of one node that one shelf holds: state machine above."""

    shelf: Shelf
    node: Node
    parent: "Residency | None"
    start: int
    """Position of the first block in its chain; equal to the node's while alive."""

    slots: bytearray = field(default_factory=bytearray)
    """Packed int64, one for each block held or being written."""

    num_ready: int = 0
    """Leading blocks that a match may use."""

    writes: list["Write"] = field(default_factory=list)
    """What covers the blocks behind the ready ones, in chain order."""

    num_pins: int = 0
    num_children: int = 0
    """Residencies that have this one as parent, dead ones included."""

    last_use: int = 0
    num_uses: int = 0
    is_alive: bool = True

    @property
    def num_blocks(self) -> int:
        """Blocks held or being written."""
        return len(self.slots) // SLOT_BYTES

    @property
    def end(self) -> int:
        """Position behind the last block."""
        return self.start + self.num_blocks

    @property
    def ready_end(self) -> int:
        """Position behind the last ready block."""
        return self.start + self.num_ready

    @property
    def first_key(self) -> BlockKey:
        """Key of the first block."""
        return self.node.keys[0]

    @property
    def is_evictable(self) -> bool:
        """Whether this is a leaf of its shelf that nobody needs."""
        held = self.num_pins or self.num_children or self.writes
        return self.is_alive and not held and self.parent is not None

    @property
    def is_freeable(self) -> bool:
        """Whether this is dead, its slots are not yet free, and nobody reads or writes them."""
        if self.num_pins or self.num_children or self not in self.shelf.dead:
            return False
        return all(write.is_written for write in self.writes)

    def __repr__(self) -> str:
        shelf = f"{self.shelf.tier}/{self.shelf.group}"
        return f"{shelf}[{self.start}, ready to {self.ready_end}, to {self.end}]"

    def children(self) -> list["Residency"]:
        """Return what hangs below this and is alive."""
        if not self.num_children:
            return []
        index = self.shelf.index
        below = (child.residencies[index] for child in self.node.children.values())
        return [child for child in below if child is not None]

    def subtree(self) -> list["Residency"]:
        """Return this residency and everything alive behind it, parents first."""
        subtree = [self]
        for parent in subtree:
            subtree += parent.children()
        return subtree

    def split(self, upper_node: Node) -> "Residency":
        """Cut where `upper_node` ends, and return the new part, which it holds."""
        position, num_upper = upper_node.end, len(upper_node.keys)
        upper = Residency(
            shelf=self.shelf,
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
            if write.residency is self and write.end_block <= position:
                write.residency = upper
        return upper

    def up_to(self, position: int) -> Iterator["Residency"]:
        """Yield this residency and its ancestors, down to the one that holds `position`."""
        residency = self
        while residency.start > position:
            yield residency
            assert residency.parent is not None
            residency = residency.parent
        yield residency


@dataclass(slots=True, eq=False)
class Write:
    """The blocks of one chain that one reservation writes on one shelf."""

    first_block: int
    end_block: int
    """Moves forward to where blocks were dropped."""

    residency: Residency
    """The deepest one it was made for; dead if blocks were dropped."""

    job_id: JobId | None = None
    """The plan that carried it out, once that has ended."""

    is_written: bool = False
    """Every owner has reported, or nothing will ever be written."""
