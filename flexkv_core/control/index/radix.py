"""The prefix index: which leading blocks of a chain are in which tier."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from flexkv_core.block.types import BlockKey
from flexkv_core.control.index.node import ChainEnd, Entry, Node, TierState, Write
from flexkv_core.control.index.tree import KeyTree
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared, EventLog
from flexkv_core.metrics import Recorder
from flexkv_core.plan import SLOT_BYTES

__all__ = ["Match", "PrefixIndex", "Presence", "Refusal"]


class Match(NamedTuple):
    """A pinned prefix: the deepest entry that holds part of it, and its length."""

    entry: Entry
    num_blocks: int


class Refusal(enum.Enum):
    """Why a reservation was not made."""

    NOTHING_MISSING = enum.auto()
    """Every block is in the tier or being written."""

    NO_ROOM = enum.auto()
    """Everything in the tier is in use."""

    STILL_LEAVING = enum.auto()
    """One of the blocks was dropped while in use, and that read or write is still in flight."""


class Presence(NamedTuple):
    """How much of a chain a tier holds."""

    num_ready: int
    """Leading blocks that a match would find."""

    num_known: int
    """Leading blocks that are ready or being written."""


class PrefixIndex:
    """One tree of key runs, and what each tier holds of each run.

    Thread: scheduler thread only. Cost: O(nodes on the path); nothing is done per block, except
    copying new keys and slots, 8 bytes each.
    """

    def __init__(
        self, tiers: Sequence[TierState], recorder: Recorder, events: EventLog | None
    ) -> None:
        self.tiers = tuple(tiers)
        self._tree = KeyTree(len(self.tiers))
        self.root = self._tree.root
        for tier in tiers:
            self.root.entries[tier.index] = Entry(tier, self.root, None, 0)
        self._recorder = recorder
        self._events = events
        self._clock = 0

    def match(self, tier: TierState, keys: Sequence[BlockKey]) -> Match | None:
        """Pin the longest ready prefix of `keys` on `tier`, until `unpin`.

        The rest of a run that is only partly shared is not pinned.
        """
        entry = self._deepest(self._tree.split_off(keys), tier)
        while not entry.num_ready:
            if entry.parent is None:
                return None
            entry = entry.parent
        entry.num_pins += 1
        return Match(entry, entry.ready_end)

    def note_use(self, keys: Sequence[BlockKey]) -> bool:
        """Count a use of what the tiers hold of `keys`, being written included.

        The rest of a run that is only partly shared is not counted as used.

        Returns:
            Whether a tier holds any of it.
        """
        node = self._tree.split_off(keys)
        self._clock += 1
        for tier in self.tiers:
            entry = self._deepest(node, tier)
            entry.last_use = self._clock
            entry.num_uses += 1
        return node is not self.root

    def lookup(self, tier: TierState, keys: Sequence[BlockKey]) -> Presence:
        """Return how much of `keys` is on `tier`, without counting a use or pinning anything."""
        num_known, entry = self._find(tier, keys)
        while not entry.num_ready and entry.parent is not None:
            entry = entry.parent
        return Presence(min(entry.ready_end, num_known), num_known)

    def restore(
        self, tier: TierState, keys: Sequence[BlockKey], first_block: int, near: ChainEnd | None
    ) -> ChainEnd:
        """Add the blocks of `keys` from `first_block` on, as far as they fit, all ready.

        Nothing is added if a block before them is not there.
        Cost: O(new blocks), and O(nodes) after `near`, which was a part of this chain once.
        """
        found = self._find(tier, keys, near and near.node_in(keys))
        if found.num_known < first_block:
            return found
        write = self.reserve(tier, keys, start=found.entry.node)
        if isinstance(write, Write):
            write.is_restored = True
            self.finish(write, write.end_block - write.first_block)
        return self._find(tier, keys, found.node_in(keys))

    def begins_chain(self, key: BlockKey) -> bool:
        """Tell whether any chain begins with `key`."""
        return key in self.root.children

    def is_ready(self, tier: TierState, key: BlockKey) -> bool:
        """Tell whether `tier` has the first block of a chain that begins with `key`."""
        node = self.root.children.get(key)
        entry = None if node is None else node.entries[tier.index]
        return entry is not None and entry.num_ready > 0

    def unpin(self, entry: Entry) -> None:
        """Undo the pin of one match."""
        entry.num_pins -= 1
        self._settle(entry)

    def reserve(
        self,
        tier: TierState,
        keys: Sequence[BlockKey],
        *,
        start: Node | None = None,
        end: int | None = None,
    ) -> Write | Refusal:
        """Make room for the blocks of `keys` up to `end` that `tier` lacks, or as many as fit.

        The walk begins at the root, or at `start`, which shares a key with `keys`.
        """
        node, shared_end = self._tree.walk(keys, start)
        end = len(keys) if end is None else end
        shared_end = min(shared_end, end)
        entry = self._deepest(node, tier)
        known_end = min(entry.end, shared_end)
        num_missing = end - known_end
        if not num_missing:
            return Refusal.NOTHING_MISSING
        if _are_leaving(tier, keys[known_end:end]):
            return Refusal.STILL_LEAVING
        num_blocks = self._make_room(entry, num_missing)
        self._recorder.add("save_no_room_blocks", num_missing - num_blocks)
        if not num_blocks:
            return Refusal.NO_ROOM
        end = known_end + num_blocks
        if end > shared_end:
            node = self._tree.add_keys(node, shared_end, keys[shared_end:end])
        return self._claim(tier, node, known_end, end)

    def finish(self, write: Write, num_good: int) -> int:
        """End `write`, whose first `num_good` blocks were written, and publish them.

        A bad block, and everything after it on this tier, is dropped.

        Returns:
            Blocks that became ready, including those of writes that had to wait for this one.
        """
        write.is_written = True
        bad_block = write.first_block + num_good
        if bad_block < write.end_block:
            entry = write.entry.at(bad_block)
            if entry.is_alive:
                self._drop(entry, bad_block)
        path = list(write.entry.up_to(write.first_block))
        for entry in path:
            self._settle(entry)
        return self._publish(path[-1])

    def drop_from(self, tier: TierState, keys: Sequence[BlockKey]) -> None:
        """Drop the last block of `keys`, and everything after it, from `tier`."""
        node, shared_end = self._tree.walk(keys)
        bad_block = len(keys) - 1
        entry = node.entries[tier.index]
        if shared_end < len(keys) or entry is None:
            return
        if 0 <= bad_block < entry.end:
            self._drop(entry, bad_block)

    def clear(self) -> None:
        """Drop everything from every tier. Cost: O(nodes).

        No key is reported as gone: the caller clears the stores as a whole.
        """
        for tier in self.tiers:
            self._mark_dead(self._deepest(self.root, tier).subtree()[1:])
            tier.gone = []
        if self._events is not None:
            self._events.append(CacheCleared())

    def _find(
        self, tier: TierState, keys: Sequence[BlockKey], start: Node | None = None
    ) -> ChainEnd:
        node, shared_end = self._tree.walk(keys, start)
        entry = self._deepest(node, tier)
        return ChainEnd(min(entry.end, shared_end), entry)

    @staticmethod
    def _deepest(node: Node, tier: TierState) -> Entry:
        """Return the entry of `tier` for `node` or its nearest ancestor; the root has one."""
        while (entry := node.entries[tier.index]) is None:
            assert node.parent is not None
            node = node.parent
        return entry

    def _make_room(self, path_end: Entry, num_blocks: int) -> int:
        """Evict until `num_blocks` slots are free, sparing the path to `path_end`.

        Returns:
            How many are free now, `num_blocks` at most.
        """
        tier = path_end.tier
        num_lacking = num_blocks - tier.pool.num_free
        if num_lacking > 0:
            path_end.num_pins += 1
            self.evict(tier, num_lacking)
            self.unpin(path_end)
        return min(num_blocks, tier.pool.num_free)

    def evict(self, tier: TierState, num_blocks: int) -> int:
        """Free `num_blocks` slots, or as many as are not in use: worst leaf first, tail first.

        Returns:
            Slots freed.
        """
        num_freed = 0
        while num_freed < num_blocks and (leaf := tier.policy.take()) is not None:
            if leaf.is_evictable:
                num_freed += self._evict_tail(leaf, num_blocks - num_freed)
        self._recorder.add("evicted_blocks", num_freed)
        return num_freed

    def _evict_tail(self, leaf: Entry, num_wanted: int) -> int:
        """Free up to `num_wanted` slots of `leaf`, which its policy has just returned."""
        num_blocks = min(num_wanted, leaf.num_blocks)
        policy, num_kept = leaf.tier.policy, leaf.num_blocks - num_blocks
        policy.record_eviction(leaf, num_blocks)
        self._record_removed(leaf, num_kept)
        if not num_kept:
            self._mark_dead([leaf])
        else:
            leaf.tier.gone += leaf.tier.keys_of(leaf, num_kept)
            leaf.tier.pool.give(leaf.slots[num_kept * SLOT_BYTES :])
            del leaf.slots[num_kept * SLOT_BYTES :]
            leaf.num_ready = num_kept
            policy.restore(leaf)
            leaf.node.trim()
        return num_blocks

    def _claim(self, tier: TierState, node: Node, first_block: int, end_block: int) -> Write:
        """Allocate blocks `first_block` to `end_block` of the chain to `node`, still unwritten."""
        self._clock += 1
        while node.start >= end_block:
            assert node.parent is not None
            node = node.parent
        entry = self._deepest(node, tier)
        below = []
        while node is not entry.node:
            below.append(node)
            assert node.parent is not None
            node = node.parent
        write = Write(first_block, end_block, entry)
        slots = tier.pool.take(end_block - first_block)
        slots = self._extend(write, slots)
        for child in reversed(below):
            write.entry.num_children += 1
            write.entry = Entry(tier, child, write.entry, child.start)
            child.entries[tier.index] = write.entry
            slots = self._extend(write, slots)
        write.entry.last_use = self._clock
        return write

    @staticmethod
    def _extend(write: Write, slots: bytes) -> bytes:
        """Give the deepest entry of `write` as many `slots` as it lacks; return the rest."""
        entry = write.entry
        num_bytes = (entry.node.end - entry.end) * SLOT_BYTES
        if num_bytes:
            entry.slots += slots[:num_bytes]
            entry.writes.append(write)
        return slots[num_bytes:]

    def _drop(self, entry: Entry, bad_block: int) -> None:
        """Drop block `bad_block`, which lies in `entry`, and everything after it."""
        if bad_block > entry.start:
            entry.node.split(bad_block)
        for write in entry.writes:
            write.end_block = min(write.end_block, bad_block)
        subtree = entry.subtree()
        for dropped in subtree:
            self._record_removed(dropped, 0)
        self._mark_dead(subtree)

    def _mark_dead(self, entries: Sequence[Entry]) -> None:
        """Make `entries`, a whole subtree with parents first, unfindable."""
        for entry in reversed(entries):
            tier = entry.tier
            entry.is_alive = False
            entry.node.entries[tier.index] = None
            tier.policy.discard(entry)
            tier.dead[entry] = tier.keys_of(entry)
            entry.node.trim()
        for entry in reversed(entries):
            self._settle(entry)

    @staticmethod
    def _settle(entry: Entry) -> None:
        """Free `entry` if dead, else let it be evicted, now that it may have lost its last user."""
        while entry.is_freeable:
            tier = entry.tier
            tier.gone += tier.dead.pop(entry)
            tier.pool.give(entry.slots)
            parent = entry.parent
            assert parent is not None
            parent.num_children -= 1
            parent.num_uses += entry.num_uses
            parent.last_use = max(parent.last_use, entry.last_use)
            entry = parent
        if entry.is_evictable:
            entry.tier.policy.add(entry)

    def _publish(self, entry: Entry) -> int:
        """Make ready what is written and has nothing unready before it, from `entry` down.

        Returns:
            How many blocks became ready.
        """
        assert entry.parent is not None
        if not entry.is_alive or entry.parent.ready_end != entry.start:
            return 0
        num_published = 0
        waiting = [entry]
        for advanced in waiting:
            num_published += self._advance(advanced)
            self._settle(advanced)
            if advanced.num_ready == len(advanced.node.keys):
                waiting += [child for child in advanced.children() if child.writes]
        return num_published

    def _advance(self, entry: Entry) -> int:
        """Make the leading written blocks of `entry` ready; return how many."""
        num_ready = entry.num_ready
        while entry.writes and entry.writes[0].is_written:
            write = entry.writes.pop(0)
            ready_end = min(write.end_block, entry.end)
            if not write.is_restored:  # nobody knows its tokens yet
                self._record_stored(entry, ready_end)
            entry.num_ready = ready_end - entry.start
        return entry.num_ready - num_ready

    def _record_removed(self, entry: Entry, num_kept: int) -> None:
        """Record that only the first `num_kept` blocks of `entry` stay findable."""
        if self._events is not None and num_kept < entry.num_ready:
            keys = entry.node.keys[num_kept : entry.num_ready]
            self._events.append(BlocksRemoved(entry.tier.name, keys))

    def _record_stored(self, entry: Entry, ready_end: int) -> None:
        """Record that `entry` becomes findable up to `ready_end`."""
        if self._events is not None and ready_end > entry.ready_end:
            keys = entry.node.keys[entry.num_ready : ready_end - entry.start]
            self._events.append(BlocksStored(entry.tier.name, keys))


def _are_leaving(tier: TierState, keys: Sequence[BlockKey]) -> bool:
    """Return whether any of `keys` is dead on `tier`; dead entries are rare."""
    leaving = {key for keys_of_one in tier.dead.values() for key in keys_of_one}
    return bool(leaving) and not leaving.isdisjoint(keys)
