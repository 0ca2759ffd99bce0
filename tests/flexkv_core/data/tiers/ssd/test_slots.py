"""The slots of a slab: taken once, free again, never while they are in use."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flexkv_core.data.tiers.ssd.slots import SlotTable

NUM_SLOTS = 24


@pytest.fixture
def table():
    table = SlotTable(0)
    table.grow(8)
    return table


def take_and_publish(table, keys):
    slots = table.take(len(keys))
    for key, slot in zip(keys, slots, strict=True):
        table.publish(key, slot)
    table.unpin(slots)
    return slots


def test_slots_of_an_adopted_slab_are_not_free_before_they_are_known():
    table = SlotTable(4)
    assert table.take(4) == range(0)
    table.release(2)
    assert list(table.take(4)) == [2]


def test_slots_that_are_taken_together_lie_together(table):
    assert table.take(5) == range(5)


def test_what_is_cut_off_is_forgotten_and_the_rest_stays(table):
    take_and_publish(table, range(6))
    table.forget(1)
    assert table.cut(4)
    assert [table.find(key) for key in range(6)] == [0, None, 2, 3, None, None]
    assert (len(table), table.num_free) == (4, 1)
    assert list(table.take(8)) == [1]


def test_slots_in_use_are_not_cut_off(table):
    take_and_publish(table, range(6))
    table.pin([5])
    assert not table.cut(5)
    assert (len(table), table.find(5)) == (8, 5)
    table.unpin([5])
    assert table.cut(5)


def test_a_run_that_is_nowhere_is_taken_in_shorter_ones(table):
    take_and_publish(table, range(8))
    for key in (1, 2, 5, 6):
        table.forget(key)
    assert table.take(4) in (range(1, 3), range(5, 7))


def test_slots_that_were_taken_for_nothing_are_free_again(table):
    table.unpin(table.take(8))
    assert table.num_free == 8


def test_a_published_key_is_found_and_keeps_its_slot(table):
    slots = take_and_publish(table, ["a", "b"])
    assert [table.find("a"), table.find("b")] == list(slots)
    assert table.num_free == 6


def test_a_forgotten_key_frees_its_slot(table):
    take_and_publish(table, range(8))
    table.forget(3)
    assert table.find(3) is None
    assert table.take(2) == range(3, 4)


def test_a_slot_in_use_is_free_only_after_its_last_call(table):
    take_and_publish(table, range(8))
    table.pin([3])
    table.pin([3])
    table.forget(3)
    table.unpin([3])
    assert table.take(1) == range(0)
    table.unpin([3])
    assert table.take(1) == range(3, 4)


def test_it_is_idle_when_no_call_uses_a_slot(table):
    slots = table.take(1)
    assert not table.is_idle
    table.unpin(slots)
    assert table.is_idle


class Slots(RuleBasedStateMachine):
    """Against the plainest model: a set of slots that somebody holds."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable(NUM_SLOTS // 2)
        self.unknown = set(range(NUM_SLOTS // 2))
        self.table.grow(NUM_SLOTS // 2)
        self.stored = {}
        self.reading = []
        self.writing = []
        self.next_key = 0

    def held(self):
        slots = [*self.unknown, *self.stored.values()]
        return {*slots, *(s for run in self.reading + self.writing for s in run)}

    @rule(num_slots=st.integers(1, 8))
    def begin_write(self, num_slots):
        held = self.held()
        slots = self.table.take(num_slots)
        assert held.isdisjoint(slots)
        assert slots or len(held) == NUM_SLOTS
        if slots:
            self.writing.append(slots)

    @precondition(lambda self: self.writing)
    @rule(is_good=st.booleans())
    def end_write(self, is_good):
        slots = self.writing.pop(0)
        for slot in slots if is_good else ():
            self.stored[self.next_key] = slot
            self.table.publish(self.next_key, slot)
            self.next_key += 1
        self.table.unpin(slots)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def begin_read(self, data):
        slot = self.stored[data.draw(st.sampled_from(sorted(self.stored)))]
        self.table.pin([slot])
        self.reading.append([slot])

    @precondition(lambda self: self.reading)
    @rule()
    def end_read(self):
        self.table.unpin(self.reading.pop(0))

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def forget(self, data):
        key = data.draw(st.sampled_from(sorted(self.stored)))
        del self.stored[key]
        self.table.forget(key)

    @precondition(lambda self: self.unknown)
    @rule()
    def learn_that_a_slot_is_free(self):
        self.table.release(self.unknown.pop())

    @invariant()
    def the_counts_agree(self):
        assert self.table.num_free == NUM_SLOTS - len(self.held())
        assert all(self.table.find(key) == slot for key, slot in self.stored.items())
        assert self.table.is_idle == (not self.reading and not self.writing)


TestSlots = Slots.TestCase
