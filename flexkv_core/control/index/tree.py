"""The tree of key runs: where a chain is in it, and where it grows."""

from collections.abc import Sequence
from typing import NamedTuple

from flexkv_core.block.types import BlockKey
from flexkv_core.control.index.node import Node

__all__ = ["KeyTree"]


class _Place(NamedTuple):
    """Where the chain that was asked about last leaves the tree; true for one version of `node`."""

    chain: tuple[int, BlockKey]
    node: Node
    version: int
    shared_end: int


class KeyTree:
    """A radix tree of all chains that any tier holds part of.

    A run is extended in place while it is a leaf, so the nodes on a path are the points where
    chains really diverge: a walk costs one look-up and one comparison per node, and a binary
    search in the last. Questions about one chain in a row cost one walk: whatever adds a key or a
    child to a node, or takes one from it, changes the node's version.

    Thread: scheduler thread only.
    """

    def __init__(self, num_tiers: int) -> None:
        """Begin empty."""
        self.root = Node(0, [], None, [None] * num_tiers)
        self._place = _Place((0, BlockKey(b"")), self.root, 0, 0)

    def walk(self, keys: Sequence[BlockKey], start: Node | None = None) -> tuple[Node, int]:
        """Return the deepest node that shares a key with `keys`, and where sharing ends.

        A request asks several things about one chain in a row: only the first question walks, from
        the root or from `start`, which shares a key with `keys`.
        """
        if not keys:
            return self.root, 0
        # A key stands for all before it, so the last one names the chain.
        chain = len(keys), keys[-1]
        place = self._place
        if place.chain != chain or place.version != place.node.version:
            node, shared_end = self.descend(keys, start)
            self._place = place = _Place(chain, node, node.version, shared_end)
        return place.node, place.shared_end

    def descend(self, keys: Sequence[BlockKey], start: Node | None = None) -> tuple[Node, int]:
        """Walk down from the root or from `start`, as far as `keys` are known."""
        child: Node | None = start or self.root
        while child is not None:
            node, end = child, child.end
            if end > len(keys) or (end and node.keys[-1] != keys[end - 1]):
                return node, node.shared_end(keys)
            child = node.children.get(keys[end]) if end < len(keys) else None
        return node, end

    def split_off(self, keys: Sequence[BlockKey]) -> Node:
        """Return the node where what is known of `keys` ends.

        It is split from the rest of its run: the chains will mostly diverge there anyway, once the
        new one is saved.
        """
        node, shared_end = self.walk(keys)
        return node.split(shared_end) if shared_end < node.end else node

    def add_keys(self, node: Node, shared_end: int, keys: Sequence[BlockKey]) -> Node:
        """Append `keys` to the chain that ends in `node` at `shared_end`; return its last node."""
        if shared_end < node.end:
            node = node.split(shared_end)
        node.version += 1
        if node.children or node.parent is None:
            child = Node(shared_end, list(keys), node, [None] * len(node.entries))
            node.children[keys[0]] = child
            return child
        node.keys += keys
        return node
