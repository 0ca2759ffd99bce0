"""Every invariant of the index is really checked: break it, and it is named."""

import pytest

from flexkv_core.block.keys import KeyChain
from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.index.integrity import _violations, check_index
from flexkv_core.control.index.node import Entry, TierState, Write
from flexkv_core.control.index.radix import PrefixIndex
from flexkv_core.control.index.slot_pool import SlotPool
from flexkv_core.errors import IntegrityError
from flexkv_core.metrics import Counters


def chain(*tokens):
    keys = KeyChain(1)
    keys.advance(tokens)
    return keys.keys


class Subject:
    """A sound index: blocks 0 to 3 shared, two leaves, one of them being written, one lease."""

    def __init__(self):
        self.tier = TierState(0, "host", "slot", SlotPool(20), create_policy("lru", 20))
        self.index = PrefixIndex([self.tier], Counters(), None)
        stored = self.index.reserve(self.tier, chain(0, 1, 2, 3, 4, 5))
        self.index.finish(stored, 6)
        self.write = self.index.reserve(self.tier, chain(0, 1, 2, 3, 7, 8))
        self.lease = self.index.match(self.tier, chain(0, 1, 2, 3)).entry
        self.trunk = next(iter(self.index.root.children.values()))
        ready, writing = self.trunk.children.values()
        self.ready, self.writing = ready.entries[0], writing.entries[0]

    def violations(self):
        return list(_violations(self.index, {self.lease: 1}, {self.write}))


@pytest.fixture
def subject():
    return Subject()


def lose_a_parent(subject):
    subject.ready.node.parent = subject.index.root


def keep_keys_that_nobody_holds(subject):
    subject.ready.node.keys.append(bytes(32))


def hold_a_child_of_a_part(subject):
    del subject.lease.slots[8:]


def be_ready_before_the_parent(subject):
    subject.lease.num_ready -= 1


def hang_below_another_path(subject):
    subject.writing.parent = subject.ready


def leave_a_block_unwritten(subject):
    subject.writing.writes.clear()


def begin_a_write_late(subject):
    subject.write.first_block += 1


def miscount_children(subject):
    subject.lease.num_children += 1


def miscount_pins(subject):
    subject.lease.num_pins += 1


def forget_a_leaf(subject):
    subject.tier.policy.discard(subject.ready)


def keep_the_dead_for_nobody(subject):
    dead = Entry(subject.tier, subject.trunk, None, 0, is_alive=False)
    subject.tier.dead[dead] = []


def keep_the_living_among_the_dead(subject):
    subject.tier.dead[subject.writing] = []


def lose_a_slot(subject):
    subject.tier.pool.take(1)


def give_a_slot_twice(subject):
    subject.ready.slots[:8] = subject.ready.slots[8:16]


def forget_to_end_a_write(subject):
    subject.write.is_written = True


def write_for_nobody(subject):
    subject.write = Write(0, 1, subject.ready)


def test_a_sound_index_passes(subject):
    assert subject.violations() == []


@pytest.mark.parametrize(
    ("invariant", "sabotage"),
    [
        ("I1", lose_a_parent),
        ("I1", keep_keys_that_nobody_holds),
        ("I2", hold_a_child_of_a_part),
        ("I2", be_ready_before_the_parent),
        ("I2", hang_below_another_path),
        ("I3", leave_a_block_unwritten),
        ("I3", begin_a_write_late),
        ("I4", miscount_children),
        ("I4", miscount_pins),
        ("I5", forget_a_leaf),
        ("I6", keep_the_dead_for_nobody),
        ("I6", keep_the_living_among_the_dead),
        ("I7", lose_a_slot),
        ("I7", give_a_slot_twice),
        ("I8", forget_to_end_a_write),
        ("I8", write_for_nobody),
    ],
)
def test_a_broken_invariant_is_named(subject, invariant, sabotage):
    sabotage(subject)
    assert invariant in {violation[:2] for violation in subject.violations()}


def test_a_violation_is_raised(subject):
    lose_a_slot(subject)
    with pytest.raises(IntegrityError, match="I7: 19 slots are accounted for, expected each of 20"):
        check_index(subject.index, {subject.lease: 1}, {subject.write})
