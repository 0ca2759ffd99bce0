"""What a split keeps true, and where chains part."""

import pytest

from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.index.node import Entry, Node, TierState, Write
from flexkv_core.control.index.slot_pool import SlotPool


def key(number):
    return bytes([number]) * 32


def make_tier(index):
    return TierState(index, f"tier-{index}", "slot", SlotPool(100), create_policy("lru", 100))


def hold(node, tier, num_blocks, **fields):
    parent = node.parent.entries[tier.index]
    entry = Entry(tier, node, parent, node.start, **fields)
    entry.slots += tier.pool.take(num_blocks)
    parent.num_children += 1
    node.entries[tier.index] = entry
    return entry


@pytest.fixture
def tiers():
    return [make_tier(0), make_tier(1)]


@pytest.fixture
def node(tiers):
    """A run of blocks 0 to 9, which nobody holds yet."""
    root = Node(0, [], None, [])
    root.entries = [Entry(tier, root, None, 0) for tier in tiers]
    node = Node(0, [key(number) for number in range(10)], root, [None, None])
    root.children[node.keys[0]] = node
    return node


@pytest.mark.parametrize("num_shared", range(1, 11))
@pytest.mark.parametrize("num_more", [0, 1, 20])
def test_chains_part_at_the_first_key_that_differs(node, num_shared, num_more):
    keys = node.keys[:num_shared] + [key(99)] * num_more
    assert node.shared_end(keys) == num_shared


def test_the_upper_part_of_a_split_is_new_and_the_lower_one_stays(node):
    keys, root = list(node.keys), node.parent
    upper = node.split(4)
    assert (upper.start, upper.keys, upper.parent) == (0, keys[:4], root)
    assert (node.start, node.keys, node.parent) == (4, keys[4:], upper)
    assert root.children == {keys[0]: upper}
    assert upper.children == {keys[4]: node}


def test_an_entry_that_reaches_past_the_cut_is_split(node, tiers):
    entry = hold(node, tiers[0], 10, num_ready=6, num_pins=2)
    slots = bytes(entry.slots)
    upper = node.split(4).entries[0]
    assert (upper.start, upper.num_ready, upper.num_pins, upper.num_children) == (0, 4, 0, 1)
    assert (entry.start, entry.num_ready, entry.num_pins) == (4, 2, 2)
    assert (bytes(upper.slots), bytes(entry.slots)) == (slots[:32], slots[32:])
    assert entry.parent is upper


@pytest.mark.parametrize("num_blocks", [1, 3, 4])
def test_an_entry_that_ends_before_the_cut_moves_up_whole(node, tiers, num_blocks):
    entry = hold(node, tiers[1], num_blocks, num_pins=1)
    upper = node.split(4)
    assert upper.entries[1] is entry
    assert node.entries[1] is None
    assert (entry.node, entry.num_pins, entry.num_children) == (upper, 1, 0)


def test_a_write_across_the_cut_is_listed_on_both_sides(node, tiers):
    entry = hold(node, tiers[0], 10)
    write = Write(2, 10, entry)
    entry.writes = [write]
    upper = node.split(4).entries[0]
    assert upper.writes == entry.writes == [write]
    assert write.entry is entry


def test_a_write_before_the_cut_goes_up(node, tiers):
    entry = hold(node, tiers[0], 10)
    first, second = Write(0, 4, entry), Write(4, 10, entry)
    entry.writes = [first, second]
    upper = node.split(4).entries[0]
    assert (upper.writes, entry.writes) == ([first], [second])
    assert (first.entry, second.entry) == (upper, entry)


def test_a_write_whose_dropped_part_is_deeper_still_reaches_it(node, tiers):
    entry = hold(node, tiers[0], 10)
    dropped = Entry(tiers[0], node, entry, 3)
    write = Write(0, 3, dropped)
    entry.writes = [write]
    node.split(4)
    assert write.entry is dropped


def test_the_way_up_ends_where_the_position_is(node, tiers):
    lower = hold(node, tiers[0], 10)
    middle = node.split(6).entries[0]
    upper = middle.node.split(3).entries[0]
    assert list(lower.up_to(3)) == [lower, middle]
    assert list(lower.up_to(2)) == [lower, middle, upper]


def test_keys_that_no_tier_holds_are_forgotten(node, tiers):
    hold(node, tiers[0], 3)
    hold(node, tiers[1], 7)
    node.trim()
    assert len(node.keys) == 7


def test_a_node_that_no_tier_holds_leaves_the_tree(node):
    node.trim()
    assert node.parent.children == {}


def test_a_subtree_has_parents_first_and_stays_on_its_tier(node, tiers):
    hold(node, tiers[0], 10)
    hold(node, tiers[1], 10)
    middle = node.split(6)
    middle.split(3)
    node.entries[1] = None
    top = middle.parent.entries[0]
    assert top.subtree() == [top, middle.entries[0], node.entries[0]]
