"""The prefix index: which leading blocks of a chain are in which tier."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared, EventLog
from flexkv_core.index.node import Node, Residency, Shelf, Write
from flexkv_core.index.slot_pool import SLOT_BYTES
from flexkv_core.metrics import Recorder
from flexkv_core.types import BlockKey, JobId

__all__ = ["Match", "PrefixIndex", "Presence", "Refusal"]


class Match(NamedTuple):
    """A pinned prefix: the deepest residency that holds part of it, and its length."""

    residency: Residency
    num_blocks: int


class Refusal(enum.Enum):
    """Why a reservation was not made."""

    NOTHING_MISSING = enum.auto()
    """Every block is in the tier or being written."""

    NO_ROOM = enum.auto()
    """Everything in the tier is in use."""

    STILL_LEAVING = enum.auto()
    """One of the blocks was dropped while somebody read or wrote it, and that has not ended."""


class Presence(NamedTuple):
    """How much of a chain a shelf holds."""

    num_ready: int
    """Leading blocks that a match would find."""

    num_known: int
    """Leading blocks that are ready or being written."""


class PrefixIndex:
    """One radix tree of key runs, and what each shelf holds of each run.

    A run is extended in place while it is a leaf, so the nodes on a path are the points where
    chains really part: a walk costs one look-up and one comparison a node, and a binary search in
    the last.

    Thread: scheduler thread only. Cost: O(nodes on the path); nothing is done per block, except
    copying new keys and slots, 8 bytes each.
    """

    def __init__(
        self, shelves: Sequence[Shelf], recorder: Recorder, events: EventLog | None
    ) -> None:
        self.shelves = tuple(shelves)
        self.root = Node(0, [], None, [])
        self.root.residencies.extend(Residency(shelf, self.root, None, 0) for shelf in shelves)
        self._recorder = recorder
        self._events = events
        self._clock = 0

    def match(self, shelf: Shelf, keys: Sequence[BlockKey]) -> Match | None:
        """Pin the longest ready prefix of `keys` on `shelf`, until `unpin`.

        A run of which only a part is shared is split, so that the rest neither counts as used nor
        is pinned. Chains mostly part there anyway, as soon as the new one is saved.
        """
        node, shared_end = self._walk(keys)
        if shared_end < node.end:
            node = node.split(shared_end)
        residency = self._deepest(node, shelf)
        while not residency.num_ready:
            if residency.parent is None:
                return None
            residency = residency.parent
        self._clock += 1
        residency.last_use = self._clock
        residency.num_uses += 1
        residency.num_pins += 1
        return Match(residency, residency.ready_end)

    def look(self, shelf: Shelf, keys: Sequence[BlockKey]) -> Presence:
        """Return how much of `keys` is on `shelf`, without using or pinning it."""
        node, shared_end = self._walk(keys)
        residency = self._deepest(node, shelf)
        num_known = min(residency.end, shared_end)
        while not residency.num_ready and residency.parent is not None:
            residency = residency.parent
        return Presence(min(residency.ready_end, shared_end), num_known)

    def unpin(self, residency: Residency) -> None:
        """Undo the pin of one match."""
        residency.num_pins -= 1
        self._settle(residency)

    def reserve(self, shelf: Shelf, keys: Sequence[BlockKey]) -> Write | Refusal:
        """Make room for the blocks of `keys` that `shelf` lacks, or for as many as fit."""
        node, shared_end = self._walk(keys)
        residency = self._deepest(node, shelf)
        known_end = min(residency.end, shared_end)
        num_missing = len(keys) - known_end
        if not num_missing:
            return Refusal.NOTHING_MISSING
        if _are_leaving(shelf, keys, known_end):
            return Refusal.STILL_LEAVING
        num_blocks = self._make_room(residency, num_missing)
        self._recorder.add("save_no_room_blocks", num_missing - num_blocks)
        if not num_blocks:
            return Refusal.NO_ROOM
        end = known_end + num_blocks
        if end > shared_end:
            node = self._add_keys(node, shared_end, keys[shared_end:end])
        return self._claim(shelf, node, known_end, end)

    def finish(self, write: Write, num_good: int, job_id: JobId | None) -> int:
        """End `write`, of which plan `job_id` wrote the first `num_good` blocks, and publish.

        A bad block, and everything behind it on this shelf, is dropped.

        Returns:
            Blocks that became ready, including those of writes that had to wait for this one.
        """
        write.is_written, write.job_id = True, job_id
        bad_block = write.first_block + num_good
        if bad_block < write.end_block:
            *_, residency = write.residency.up_to(bad_block)
            if residency.is_alive:
                self._drop(residency, bad_block)
        path = list(write.residency.up_to(write.first_block))
        for residency in path:
            self._settle(residency)
        return self._publish(path[-1])

    def drop_from(self, shelf: Shelf, keys: Sequence[BlockKey]) -> None:
        """Drop the last block of `keys`, and everything behind it, from `shelf`."""
        node, shared_end = self._walk(keys)
        bad_block = len(keys) - 1
        residency = node.residencies[shelf.index]
        if shared_end < len(keys) or residency is None:
            return
        if 0 <= bad_block < residency.end:
            self._drop(residency, bad_block)

    def clear(self) -> None:
        """Drop everything from every shelf. Cost: O(nodes).

        No key is reported as gone: whoever clears the index clears the stores as a whole.
        """
        for shelf in self.shelves:
            self._bury(self._deepest(self.root, shelf).subtree()[1:])
            shelf.gone = []
        if self._events is not None:
            self._events.append(CacheCleared())

    def _walk(self, keys: Sequence[BlockKey]) -> tuple[Node, int]:
        """Return the deepest node that shares a key with `keys`, and where sharing ends."""
        node, position, num_keys = self.root, 0, len(keys)
        while position < num_keys:
            child = node.children.get(keys[position])
            if child is None:
                break
            end = position + len(child.keys)
            if end > num_keys or child.keys[-1] != keys[end - 1]:
                return child, child.shared_end(keys)
            node, position = child, end
        return node, position

    @staticmethod
    def _deepest(node: Node, shelf: Shelf) -> Residency:
        """Return what `shelf` holds of `node` or of its nearest ancestor, the root at last."""
        while (residency := node.residencies[shelf.index]) is None:
            assert node.parent is not None
            node = node.parent
        return residency

    def _make_room(self, path_end: Residency, num_blocks: int) -> int:
        """Evict until `num_blocks` slots are free, sparing the path to `path_end`.

        Returns:
            How many of them there are.
        """
        shelf = path_end.shelf
        num_lacking = num_blocks - shelf.pool.num_free
        if num_lacking > 0:
            path_end.num_pins += 1
            self.evict(shelf, num_lacking)
            self.unpin(path_end)
        return min(num_blocks, shelf.pool.num_free)

    def evict(self, shelf: Shelf, num_blocks: int) -> int:
        """Free `num_blocks` slots, or as many as nobody needs, worst leaf first, tail first.

        Returns:
            Slots freed.
        """
        num_freed = 0
        while num_freed < num_blocks and (leaf := shelf.policy.take()) is not None:
            if leaf.is_evictable:
                num_freed += self._evict_tail(leaf, num_blocks - num_freed)
        self._recorder.add("evicted_blocks", num_freed)
        return num_freed

    def _evict_tail(self, leaf: Residency, num_wanted: int) -> int:
        """Free up to `num_wanted` slots of `leaf`, which its policy has just given."""
        num_blocks = min(num_wanted, leaf.num_blocks)
        policy, num_kept = leaf.shelf.policy, leaf.num_blocks - num_blocks
        policy.record_eviction(leaf, num_blocks)
        self._tell_removed(leaf, num_kept)
        if not num_kept:
            self._bury([leaf])
        else:
            leaf.shelf.gone += leaf.shelf.keys_of(leaf, num_kept)
            leaf.shelf.pool.give(leaf.slots[num_kept * SLOT_BYTES :])
            del leaf.slots[num_kept * SLOT_BYTES :]
            leaf.num_ready = num_kept
            policy.restore(leaf)
            leaf.node.trim()
        return num_blocks

    def _add_keys(self, node: Node, shared_end: int, keys: Sequence[BlockKey]) -> Node:
        """Continue the chain, in `node` up to `shared_end`, by `keys`; return its last node."""
        if shared_end < node.end:
            node = node.split(shared_end)
        if node.children or node.parent is None:
            child = Node(shared_end, list(keys), node, [None] * len(self.shelves))
            node.children[keys[0]] = child
            return child
        node.keys += keys
        return node

    def _claim(self, shelf: Shelf, node: Node, first_block: int, end_block: int) -> Write:
        """Hold the blocks from `first_block` to `end_block` of the chain to `node`, unwritten."""
        self._clock += 1
        while node.start >= end_block:
            assert node.parent is not None
            node = node.parent
        residency = self._deepest(node, shelf)
        below = []
        while node is not residency.node:
            below.append(node)
            assert node.parent is not None
            node = node.parent
        write = Write(first_block, end_block, residency)
        slots = shelf.pool.take(end_block - first_block)
        slots = self._extend(write, slots)
        for child in reversed(below):
            write.residency.num_children += 1
            write.residency = Residency(shelf, child, write.residency, child.start)
            child.residencies[shelf.index] = write.residency
            slots = self._extend(write, slots)
        write.residency.last_use = self._clock
        return write

    @staticmethod
    def _extend(write: Write, slots: bytes) -> bytes:
        """Give the deepest residency of `write` as many `slots` as it lacks; return the rest."""
        residency = write.residency
        num_bytes = (residency.node.end - residency.end) * SLOT_BYTES
        if num_bytes:
            residency.slots += slots[:num_bytes]
            residency.writes.append(write)
        return slots[num_bytes:]

    def _drop(self, residency: Residency, bad_block: int) -> None:
        """Drop the blocks from `bad_block` on, which lies in `residency`, and all behind them."""
        if bad_block > residency.start:
            residency.node.split(bad_block)
        for write in residency.writes:
            write.end_block = min(write.end_block, bad_block)
        subtree = residency.subtree()
        for dropped in subtree:
            self._tell_removed(dropped, 0)
        self._bury(subtree)

    def _bury(self, residencies: Sequence[Residency]) -> None:
        """Make `residencies`, a whole subtree with parents first, unfindable."""
        for residency in reversed(residencies):
            shelf = residency.shelf
            residency.is_alive = False
            residency.node.residencies[shelf.index] = None
            shelf.policy.discard(residency)
            shelf.dead[residency] = shelf.keys_of(residency)
            residency.node.trim()
        for residency in reversed(residencies):
            self._settle(residency)

    @staticmethod
    def _settle(residency: Residency) -> None:
        """See what is possible now that `residency` may have lost its last user."""
        while residency.is_freeable:
            shelf = residency.shelf
            shelf.gone += shelf.dead.pop(residency)
            shelf.pool.give(residency.slots)
            parent = residency.parent
            assert parent is not None
            parent.num_children -= 1
            parent.num_uses += residency.num_uses
            parent.last_use = max(parent.last_use, residency.last_use)
            residency = parent
        if residency.is_evictable:
            residency.shelf.policy.add(residency)

    def _publish(self, residency: Residency) -> int:
        """Make ready what is written and has nothing unready before it, from `residency` down.

        Returns:
            How many blocks became ready.
        """
        assert residency.parent is not None
        if not residency.is_alive or residency.parent.ready_end != residency.start:
            return 0
        num_published = 0
        waiting = [residency]
        for advanced in waiting:
            num_published += self._advance(advanced)
            self._settle(advanced)
            if advanced.num_ready == len(advanced.node.keys):
                waiting += [child for child in advanced.children() if child.writes]
        return num_published

    def _advance(self, residency: Residency) -> int:
        """Make the leading written blocks of `residency` ready; return how many."""
        num_ready = residency.num_ready
        while residency.writes and residency.writes[0].is_written:
            write = residency.writes.pop(0)
            ready_end = min(write.end_block, residency.end)
            self._tell_stored(residency, ready_end, write)
            residency.num_ready = ready_end - residency.start
        return residency.num_ready - num_ready

    def _tell_removed(self, residency: Residency, num_kept: int) -> None:
        """Record that only the first `num_kept` blocks of `residency` stay findable."""
        if self._events is not None and num_kept < residency.num_ready:
            keys = residency.node.keys[num_kept : residency.num_ready]
            self._events.append(BlocksRemoved(residency.shelf.tier, keys))

    def _tell_stored(self, residency: Residency, ready_end: int, write: Write) -> None:
        """Record that `residency` becomes findable up to `ready_end`, thanks to `write`."""
        if self._events is None or write.job_id is None:
            return  # nobody listens, or nobody knows the tokens of what was found on a disk
        shelf, node, first = residency.shelf, residency.node, residency.num_ready
        assert node.parent is not None
        before = node.keys[first - 1 : first] if first else node.parent.keys[-1:]
        stored = BlocksStored(
            tier=shelf.tier,
            keys=node.keys[first : ready_end - residency.start],
            parent=before[0] if before else None,
            job_id=write.job_id,
            first_block=residency.ready_end,
        )
        self._events.append(stored)


def _are_leaving(shelf: Shelf, keys: Sequence[BlockKey], first: int) -> bool:
    """Tell whether one of `keys` from `first` on is dead on `shelf`; hardly ever is anything."""
    leaving = {key for keys_of_one in shelf.dead.values() for key in keys_of_one}
    return bool(leaving) and not leaving.isdisjoint(keys[first:])
