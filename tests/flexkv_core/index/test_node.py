"""What a split keeps true, and where chains part."""

import pytest

from flexkv_core.eviction.policies import create_policy
from flexkv_core.index.node import Node, Residency, Shelf, Write
from flexkv_core.index.slot_pool import SlotPool


def key(number):
    return bytes([number]) * 32


def make_shelf(index):
    return Shelf(index, f"tier-{index}", 0, "slot", SlotPool(100), create_policy("lru", 100))


def hold(node, shelf, num_blocks, **fields):
    parent = node.parent.residencies[shelf.index]
    residency = Residency(shelf, node, parent, node.start, **fields)
    residency.slots += shelf.pool.take(num_blocks)
    parent.num_children += 1
    node.residencies[shelf.index] = residency
    return residency


@pytest.fixture
def shelves():
    return [make_shelf(0), make_shelf(1)]


@pytest.fixture
def node(shelves):
    """A run of blocks 0 to 9, which nobody holds yet."""
    root = Node(0, [], None, [])
    root.residencies = [Residency(shelf, root, None, 0) for shelf in shelves]
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


def test_a_residency_that_reaches_past_the_cut_is_split(node, shelves):
    residency = hold(node, shelves[0], 10, num_ready=6, num_pins=2)
    slots = bytes(residency.slots)
    upper = node.split(4).residencies[0]
    assert (upper.start, upper.num_ready, upper.num_pins, upper.num_children) == (0, 4, 0, 1)
    assert (residency.start, residency.num_ready, residency.num_pins) == (4, 2, 2)
    assert (bytes(upper.slots), bytes(residency.slots)) == (slots[:32], slots[32:])
    assert residency.parent is upper


@pytest.mark.parametrize("num_blocks", [1, 3, 4])
def test_a_residency_that_ends_before_the_cut_moves_up_whole(node, shelves, num_blocks):
    residency = hold(node, shelves[1], num_blocks, num_pins=1)
    upper = node.split(4)
    assert upper.residencies[1] is residency
    assert node.residencies[1] is None
    assert (residency.node, residency.num_pins, residency.num_children) == (upper, 1, 0)


def test_a_write_across_the_cut_is_listed_on_both_sides(node, shelves):
    residency = hold(node, shelves[0], 10)
    write = Write(2, 10, residency)
    residency.writes = [write]
    upper = node.split(4).residencies[0]
    assert upper.writes == residency.writes == [write]
    assert write.residency is residency


def test_a_write_before_the_cut_goes_up(node, shelves):
    residency = hold(node, shelves[0], 10)
    first, second = Write(0, 4, residency), Write(4, 10, residency)
    residency.writes = [first, second]
    upper = node.split(4).residencies[0]
    assert (upper.writes, residency.writes) == ([first], [second])
    assert (first.residency, second.residency) == (upper, residency)


def test_a_write_whose_dropped_part_is_deeper_still_reaches_it(node, shelves):
    residency = hold(node, shelves[0], 10)
    dropped = Residency(shelves[0], node, residency, 3)
    write = Write(0, 3, dropped)
    residency.writes = [write]
    node.split(4)
    assert write.residency is dropped


def test_the_way_up_ends_where_the_position_is(node, shelves):
    lower = hold(node, shelves[0], 10)
    middle = node.split(6).residencies[0]
    upper = middle.node.split(3).residencies[0]
    assert list(lower.up_to(3)) == [lower, middle]
    assert list(lower.up_to(2)) == [lower, middle, upper]


def test_keys_that_no_shelf_holds_are_forgotten(node, shelves):
    hold(node, shelves[0], 3)
    hold(node, shelves[1], 7)
    node.trim()
    assert len(node.keys) == 7


def test_a_node_that_no_shelf_holds_leaves_the_tree(node):
    node.trim()
    assert node.parent.children == {}


def test_a_subtree_has_parents_first_and_stays_on_its_shelf(node, shelves):
    hold(node, shelves[0], 10)
    hold(node, shelves[1], 10)
    middle = node.split(6)
    middle.split(3)
    node.residencies[1] = None
    top = middle.parent.residencies[0]
    assert top.subtree() == [top, middle.residencies[0], node.residencies[0]]
