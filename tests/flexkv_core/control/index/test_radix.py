"""The prefix index: what is found, who writes what, what leaves, and what outlives a drop."""

from array import array

import pytest

from flexkv_core.block.keys import KeyChain
from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.index.integrity import check_index
from flexkv_core.control.index.node import TierState
from flexkv_core.control.index.radix import PrefixIndex, Refusal
from flexkv_core.control.index.slot_pool import SlotPool
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared, EventLog
from flexkv_core.metrics import Counters

CAPACITY = 16


def chain(*tokens):
    """Return the keys of a chain of one-token blocks."""
    keys = KeyChain(1)
    keys.advance(tokens)
    return keys.keys


A = chain(*range(10))
B = A[:4] + chain(*range(4), 50, 51, 52)[4:]
C = chain(*range(70, 80))


class Index(PrefixIndex):
    """An index of two tiers that keeps count of leases and writes, for the checks."""

    def __init__(self, policy="lru"):
        self.log, self.counters = EventLog(), Counters()
        self.pins, self.open_writes = {}, set()
        tiers = [
            TierState(i, name, "slot", SlotPool(CAPACITY), create_policy(policy, CAPACITY))
            for i, name in enumerate(("host", "ssd"))
        ]
        super().__init__(tiers, self.counters, self.log)
        self.host, self.ssd = self.tiers

    def pin(self, keys, tier=None):
        match = self.match(tier or self.host, keys)
        self.pins[match.entry] = self.pins.get(match.entry, 0) + 1
        return match

    def release(self, match):
        self.pins[match.entry] -= 1
        self.unpin(match.entry)

    def begin(self, keys, tier=None):
        write = self.reserve(tier or self.host, keys)
        self.open_writes.add(write)
        return write

    def end(self, write, num_good=None):
        self.open_writes.remove(write)
        num_blocks = write.end_block - write.first_block
        return self.finish(write, num_blocks if num_good is None else num_good)

    def store(self, keys, tier=None):
        return self.end(self.begin(keys, tier))

    def num_found(self, keys, tier=None):
        match = self.match(tier or self.host, keys)
        if match is None:
            return 0
        self.unpin(match.entry)
        return match.num_blocks

    def num_nodes(self):
        nodes = [self.root]
        for node in nodes:
            nodes += node.children.values()
        return len(nodes) - 1


@pytest.fixture
def index():
    index = Index()
    yield index
    check_index(index, index.pins, index.open_writes)


def test_nothing_is_found_in_an_empty_index(index):
    assert index.match(index.host, A) is None


def test_no_keys_match_nothing(index):
    index.store(A)
    assert index.match(index.host, []) is None


@pytest.mark.parametrize("num_stored", range(1, 11))
def test_the_longest_stored_prefix_is_found(index, num_stored):
    index.store(A[:num_stored])
    assert index.num_found(A) == num_stored


@pytest.mark.parametrize("num_asked", range(1, 11))
def test_a_part_of_what_is_stored_is_found(index, num_asked):
    index.store(A)
    assert index.num_found(A[:num_asked]) == num_asked


def test_chains_that_part_are_both_found(index):
    index.store(A)
    index.store(B)
    assert (index.num_found(A), index.num_found(B), index.num_found(C)) == (10, 7, 0)


def test_shared_blocks_are_stored_once(index):
    index.store(A)
    index.store(B)
    assert index.host.pool.num_used == 13


def test_a_block_of_one_tier_is_not_found_on_another(index):
    index.store(A)
    assert index.num_found(A, index.ssd) == 0


def test_tiers_hold_prefixes_of_different_length(index):
    index.store(A[:3], index.ssd)
    index.store(A)
    assert (index.num_found(A), index.num_found(A, index.ssd)) == (10, 3)


def test_what_is_being_written_is_not_found(index):
    index.store(A[:3])
    index.begin(A)
    assert index.num_found(A) == 3


def test_a_growing_chain_stays_one_node(index):
    keys = []
    for key in A:
        keys.append(key)
        index.store(keys)
    assert index.num_nodes() == 1


def test_the_list_of_a_caller_may_grow_after_the_call(index):
    keys = A[:3]
    index.store(keys)
    keys += A[3:6]
    assert index.num_found(A) == 3
    index.store(keys)
    assert index.num_found(A) == 6


def test_a_matched_part_is_pinned_and_the_rest_is_not(index):
    index.store(A)
    lease = index.pin(A[:4])
    assert index.evict(index.host, CAPACITY) == 6
    assert index.num_found(A) == 4
    index.release(lease)


def test_a_reservation_skips_what_is_known(index):
    index.store(A[:4])
    write = index.begin(A)
    assert (write.first_block, write.end_block) == (4, 10)


def test_nothing_is_missing_of_what_is_stored_or_being_written(index):
    index.begin(A)
    assert index.reserve(index.host, A[:7]) is Refusal.NOTHING_MISSING


def test_a_second_writer_gets_what_is_behind_the_first(index):
    index.begin(A[:6])
    write = index.begin(A)
    assert (write.first_block, write.end_block) == (6, 10)


def test_a_second_writer_may_leave_the_path_of_the_first(index):
    first = index.begin(A)
    second = index.begin(B)
    assert (second.first_block, second.end_block) == (4, 7)
    assert index.end(second) == 0
    assert index.end(first) == 13
    assert (index.num_found(A), index.num_found(B)) == (10, 7)


def test_whoever_ends_first_publishes_only_what_has_nothing_unwritten_before_it(index):
    first, second, third = index.begin(A[:3]), index.begin(A[:6]), index.begin(A)
    assert index.end(third) == 0
    assert index.end(first) == 3
    assert index.num_found(A) == 3
    assert index.end(second) == 7
    assert index.num_found(A) == 10


def test_a_reservation_fills_the_runs_that_another_tier_holds(index):
    index.store(A)
    index.store(B)
    write = index.begin(B, index.ssd)
    assert (write.first_block, write.end_block) == (0, 7)
    index.end(write)
    assert index.num_found(B, index.ssd) == 7
    assert index.num_found(A, index.ssd) == 4


def test_a_reservation_that_ends_high_leaves_no_empty_entry_below(index):
    index.store(C[:15], index.ssd)
    index.store(A)
    index.store(B)
    lease = index.pin(C, index.ssd)
    filler = index.begin(chain(90, 91, 92), index.ssd)
    write = index.begin(A, index.ssd)
    assert (write.first_block, write.end_block) == (0, 3)
    check_index(index, index.pins, index.open_writes)
    index.end(filler)
    index.release(lease)


def test_only_the_leading_part_that_fits_is_reserved(index):
    lease = index.store(A) and index.pin(A)
    write = index.begin(C)
    assert (write.first_block, write.end_block) == (0, 6)
    assert index.counters.drain()["save_no_room_blocks"] == 4
    index.release(lease)


def test_there_is_no_room_while_everything_is_in_use(index):
    index.begin(chain(*range(100, 100 + CAPACITY)))
    assert index.reserve(index.host, A) is Refusal.NO_ROOM


def test_a_failed_write_is_dropped_from_its_first_bad_block_on(index):
    write = index.begin(A)
    assert index.end(write, 4) == 4
    assert index.num_found(A) == 4
    assert index.host.pool.num_used == 4


def test_a_failed_write_takes_along_what_others_wrote_behind_it(index):
    first, second = index.begin(A[:3]), index.begin(A)
    index.end(second)
    assert index.end(first, 2) == 2
    assert index.num_found(A) == 2
    assert index.host.pool.num_used == 2


def test_a_failed_write_does_not_free_what_is_still_written_behind_it(index):
    first, second = index.begin(A[:3]), index.begin(A)
    index.end(first, 0)
    assert index.host.pool.num_used == 10
    assert index.end(second) == 0
    assert index.host.pool.num_used == 0


def test_a_failed_write_leaves_other_tiers_alone(index):
    index.store(A)
    index.end(index.begin(A, index.ssd), 5)
    assert (index.num_found(A), index.num_found(A, index.ssd)) == (10, 5)


def test_a_dropped_block_that_is_reserved_again_is_not_published_by_its_old_writer(index):
    old = index.begin(A[:6])
    index.drop_from(index.host, A[:2])
    new = index.begin(A[:6])
    assert (new.first_block, new.end_block) == (1, 6)
    assert index.end(old) == 1
    assert index.num_found(A) == 1
    assert index.end(new) == 5


def test_an_old_writer_ends_after_its_run_was_extended_and_split(index):
    old = index.begin(A[:6])
    index.drop_from(index.host, A[:3])
    new = index.begin(A)
    other = index.begin(A[:2] + C)
    assert index.end(old) == 2
    assert index.end(new) == 8
    assert index.end(other) == len(C[: CAPACITY - 14])
    assert index.host.pool.num_used == 2 + 8 + 2


def test_the_least_recently_used_leaf_leaves_first(index):
    index.store(A[:5])
    index.store(C[:5])
    index.note_use(A)
    index.evict(index.host, 5)
    assert (index.num_found(A), index.num_found(C)) == (5, 0)


def test_a_leaf_leaves_from_its_tail(index):
    index.store(A)
    assert index.evict(index.host, 3) == 3
    assert index.num_found(A) == 7


def test_a_shrunken_leaf_goes_on_shrinking_before_the_next_one(index):
    index.store(A[:5])
    index.store(C[:5])
    for _ in range(4):
        index.evict(index.host, 1)
    assert (index.num_found(A), index.num_found(C)) == (1, 5)


def test_a_parent_leaves_after_its_children_when_its_own_use_says_so(index):
    index.store(A[:4])
    index.store(A[:6])
    index.store(B[:6])
    index.store(C[:3])
    assert index.evict(index.host, 8) == 8
    assert index.num_found(C) == 3


def test_a_use_of_a_child_is_a_use_of_its_parent(index):
    index.store(A[:6])
    index.store(B[:6])
    index.store(C[:3])
    index.note_use(B)
    index.evict(index.host, 2 + 3 + 2)
    assert (index.num_found(A), index.num_found(C)) == (4, 0)


def test_a_use_of_a_child_that_was_dropped_is_a_use_of_its_parent(index):
    index.store(A[:6])
    index.store(B[:6])
    index.store(C[:3])
    index.note_use(B)
    index.drop_from(index.host, A[:5])
    index.drop_from(index.host, B[:5])
    index.evict(index.host, 3)
    assert (index.num_found(A), index.num_found(C)) == (4, 0)


def test_uses_are_counted_and_inherited(index):
    index.store(A[:6])
    index.note_use(A[:4])
    for _ in range(3):
        index.note_use(A)
    trunk = index.match(index.host, A[:4]).entry
    index.unpin(trunk)
    assert trunk.num_uses == 1
    index.evict(index.host, 2)
    assert trunk.num_uses == 4


def test_what_is_read_or_written_on_behalf_of_a_request_is_no_further_use(index):
    index.store(A)
    index.release(index.pin(A))
    index.store(A, index.ssd)
    match = index.pin(A)
    assert (match.entry.num_uses, match.entry.last_use) == (0, 1), "it was written"


def test_a_use_counts_in_every_tier_that_holds_some_of_it_or_will(index):
    assert not index.note_use(A)
    index.store(A[:3])
    writing = index.begin(A[:5], index.ssd)
    assert index.note_use(A)
    host = index.pin(A).entry
    assert (host.num_uses, writing.entry.num_uses) == (1, 1)
    assert host.last_use == writing.entry.last_use


def test_a_leaf_that_shrinks_stays_first_in_a_queue():
    index = Index("s3fifo")
    index.store(A[:5])
    index.store(C[:5])
    for _ in range(4):
        index.evict(index.host, 1)
    assert (index.num_found(A), index.num_found(C)) == (1, 5)


def test_a_policy_hears_what_was_evicted():
    index = Index("s3fifo")
    index.store(A[:5])
    index.evict(index.host, 5)
    index.store(A[:5])
    index.store(C[:5])
    index.evict(index.host, 5)
    assert (index.num_found(A), index.num_found(C)) == (5, 0)


def test_a_policy_forgets_what_was_dropped(index):
    index.store(A)
    entry = index.match(index.host, A).entry
    index.unpin(entry)
    assert entry in index.host.policy
    index.drop_from(index.host, A[:1])
    assert entry not in index.host.policy


def test_what_is_pinned_or_being_written_is_not_evicted(index):
    index.store(A[:5])
    lease = index.pin(A[:5])
    index.begin(C[:5])
    assert index.evict(index.host, CAPACITY) == 0
    index.release(lease)
    assert index.evict(index.host, CAPACITY) == 5


def test_the_path_of_a_reservation_is_not_evicted_for_it(index):
    index.store(A)
    write = index.begin(A + chain(*range(30))[10:30])
    assert (write.first_block, write.end_block) == (10, CAPACITY)


def test_room_is_made_by_evicting_no_more_than_needed(index):
    index.store(A)
    index.begin(C)
    assert index.num_found(A) == 6


def test_evicting_a_few_leaves_looks_at_a_few_leaves(index, monkeypatch):
    for number in range(CAPACITY):
        index.store(chain(100 + number))
    policy, num_taken = index.host.policy, []
    take = policy.take
    monkeypatch.setattr(policy, "take", lambda: num_taken.append(1) or take())
    assert index.evict(index.host, 3) == 3
    assert len(num_taken) == 3


def test_a_dropped_block_and_all_behind_it_are_not_found(index):
    index.store(A)
    index.store(B)
    index.drop_from(index.host, A[:3])
    assert (index.num_found(A), index.num_found(B)) == (2, 2)
    assert index.host.pool.num_used == 2


def test_a_drop_stays_on_its_tier(index):
    index.store(A)
    index.store(A, index.ssd)
    index.drop_from(index.ssd, A[:3])
    assert (index.num_found(A), index.num_found(A, index.ssd)) == (10, 2)


@pytest.mark.parametrize("keys", [[], C, [*A[:3], *C], [*A[:3], *C[:2]], chain(*range(11))])
def test_dropping_what_is_not_there_changes_nothing(index, keys):
    index.store(A)
    index.drop_from(index.host, keys)
    assert index.num_found(A) == 10


def test_a_drop_of_what_only_another_tier_has_changes_nothing(index):
    index.store(A[:3])
    index.store(A, index.ssd)
    index.drop_from(index.host, A[:5])
    assert (index.num_found(A), index.num_found(A, index.ssd)) == (3, 10)


def test_a_write_that_fails_after_its_blocks_were_dropped_frees_them(index):
    write = index.begin(A)
    index.drop_from(index.host, A[:1])
    assert index.host.pool.num_used == 10
    assert index.end(write, 3) == 0
    assert index.host.pool.num_used == 0


def test_a_write_behind_a_dropped_block_may_still_fail(index):
    index.store(A)
    write = index.begin(B)
    index.drop_from(index.host, A[:2])
    assert index.end(write, 1) == 0
    assert index.host.pool.num_used == 1


def test_a_pinned_block_is_dropped_at_once_and_freed_at_the_last_release(index):
    index.store(A)
    first, second = index.pin(A), index.pin(A)
    index.drop_from(index.host, A[:3])
    assert index.num_found(A) == 2
    index.release(first)
    assert index.host.pool.num_used == 10
    index.release(second)
    assert index.host.pool.num_used == 2


def test_a_pinned_path_stays_whole_when_it_is_dropped_in_the_middle(index):
    index.store(A)
    index.store(B)
    lease = index.pin(B)
    index.drop_from(index.host, A[:2])
    assert index.host.pool.num_used == 7
    assert index.evict(index.host, CAPACITY) == 0
    index.release(lease)
    assert index.host.pool.num_used == 1


def test_a_dropped_block_may_come_back_while_the_old_one_is_read(index):
    index.store(A)
    lease = index.pin(A)
    old = array("q", lease.entry.slots).tolist()
    index.drop_from(index.host, A[:1])
    index.store(A[:5])
    new = index.pin(A)
    assert not set(old) & set(array("q", new.entry.slots).tolist())
    index.release(lease)
    assert index.num_found(A) == 5
    index.release(new)


def test_clear_drops_everything_but_what_is_in_use(index):
    index.store(A)
    lease = index.pin(A[:4])
    write = index.begin(C[:2])
    index.clear()
    assert index.num_found(A) == 0
    assert index.host.pool.num_used == 6
    index.release(lease)
    index.end(write)
    assert index.host.pool.num_used == 0


def test_stored_blocks_are_told(index):
    index.store(A[:2])
    index.store(A[:5])
    assert index.log.take() == [BlocksStored("host", A[:2]), BlocksStored("host", A[2:5])]


def test_blocks_that_an_earlier_process_wrote_are_not_told(index):
    index.restore(index.ssd, A[:5], 0, None)
    assert index.log.take() == []


def test_a_write_over_a_fork_is_told_in_order(index):
    index.store(A, index.ssd)
    index.store(B, index.ssd)
    index.log.take()
    index.store(B)
    assert index.log.take() == [BlocksStored("host", B[:4]), BlocksStored("host", B[4:])]


def test_blocks_that_had_to_wait_are_told_when_they_are_found(index):
    first, second = index.begin(A[:2]), index.begin(A[:5])
    index.end(second)
    assert index.log.take() == []
    index.end(first)
    assert index.log.take() == [BlocksStored("host", A[:2]), BlocksStored("host", A[2:5])]


def test_evicted_and_dropped_blocks_are_told(index):
    index.store(A)
    index.log.take()
    index.evict(index.host, 2)
    index.drop_from(index.host, A[:5])
    assert index.log.take() == [BlocksRemoved("host", A[8:]), BlocksRemoved("host", A[4:8])]


def test_blocks_that_were_never_found_are_not_told(index):
    index.end(index.begin(A), 0)
    assert index.log.take() == []


def test_a_clear_is_told_as_one_event(index):
    index.store(A)
    index.log.take()
    index.clear()
    assert index.log.take() == [CacheCleared()]


def test_evicted_blocks_are_counted(index):
    index.store(A)
    index.evict(index.host, 4)
    assert index.counters.drain() == {"evicted_blocks": 4}


CHANGES = {
    "it is extended": lambda index: index.store(A[:9]),
    "it is extended on the other tier": lambda index: index.store(A, index.ssd),
    "another leaves it": lambda index: index.store(B),
    "another is used as far as it is shared": lambda index: index.num_found(A[:2]),
    "its tail is evicted": lambda index: index.evict(index.host, 2),
    "it is evicted": lambda index: index.evict(index.host, 6),
    "its end is dropped": lambda index: index.drop_from(index.host, A[:3]),
    "everything is dropped": lambda index: index.clear(),
    "it is replaced": lambda index: (index.evict(index.host, 6), index.store(B)),
}


@pytest.mark.parametrize("num_asked", range(1, 11))
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_asked_last_is_answered_anew_when_the_tree_has_changed(index, change, num_asked):
    asked = A[:num_asked]
    index.store(A[:6])
    index.lookup(index.host, asked)
    CHANGES[change](index)
    assert index._tree.walk(asked) == index._tree.descend(asked)


def test_the_first_chain_of_an_empty_index_is_found_by_who_has_asked_for_it_before(index):
    assert index.lookup(index.host, A).num_known == 0
    index.store(A)
    assert index.lookup(index.host, A).num_known == 10


def test_questions_about_one_chain_in_a_row_are_one_walk(index, monkeypatch):
    index.store(A)
    walks, descend = [], index._tree.descend
    monkeypatch.setattr(
        index._tree, "descend", lambda keys, start: walks.append(keys) or descend(keys, start)
    )
    for keys in (B, A, B):
        assert index.lookup(index.host, keys) == index.lookup(index.host, list(keys))
        index.num_found(list(keys), index.ssd)
    assert walks == [B, A, B]


def test_a_reservation_may_end_before_its_chain(index):
    index.store(A[:2])
    write = index.reserve(index.host, A, end=5)
    index.open_writes.add(write)
    assert (write.first_block, write.end_block) == (2, 5)
    assert index.reserve(index.host, A, end=5) is Refusal.NOTHING_MISSING
    index.end(write)
    assert index.num_found(A) == 5


def test_a_reservation_may_end_within_a_run_that_the_other_tier_holds(index):
    index.store(A[:6])
    index.store([*A[:4], *B[4:]])
    write = index.reserve(index.ssd, A[:6], end=3)
    index.open_writes.add(write)
    index.end(write)
    assert index.num_found(A, index.ssd) == 3


def test_only_the_first_key_of_a_chain_begins_one(index):
    index.end(index.begin(A))
    index.end(index.begin(B))
    assert index.begins_chain(A[0])
    assert not any(map(index.begins_chain, [*A[1:], *B[4:], C[0]]))


def test_the_first_block_of_a_chain_is_ready_once_it_is_written(index):
    write = index.begin(A[:3])
    assert not index.is_ready(index.host, A[0])
    index.end(write)
    assert index.is_ready(index.host, A[0])
    assert not index.is_ready(index.host, A[1])


def test_a_first_block_that_was_dropped_or_is_in_another_tier_is_not_ready(index):
    index.store(A)
    index.store(A[:1], index.ssd)
    index.drop_from(index.host, A[:1])
    assert [index.is_ready(tier, A[0]) for tier in index.tiers] == [False, True]
