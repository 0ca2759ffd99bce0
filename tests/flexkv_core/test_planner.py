"""Plans name exactly the blocks that were asked for, wherever they lie."""

from array import array

import pytest

from flexkv_core import planner
from flexkv_core.errors import LeaseError
from flexkv_core.eviction.policies import create_policy
from flexkv_core.index.node import Shelf
from flexkv_core.index.radix import PrefixIndex
from flexkv_core.index.slot_pool import SlotPool
from flexkv_core.keys import KeyChain
from flexkv_core.lease import ClaimState, Lease, Reservation
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, StoredBlocks
from flexkv_core.planner import Ticket

CAPACITY = 40
PAGES = EnginePages([4, 5, 6], 1)
TICKET = Ticket(9, 2, 1.5)


def chain(*tokens):
    keys = KeyChain(1)
    keys.advance(tokens)
    return keys.keys


A = chain(*range(10))
B = chain(*range(4), 50, 51, 52)


class Tiers(PrefixIndex):
    """A host tier with two cache groups, and an ssd tier that is addressed by key."""

    def __init__(self):
        shelves = []
        for name, group, addressed_by in (
            ("host", 0, "slot"),
            ("host", 1, "slot"),
            ("ssd", 0, "key"),
        ):
            policy, pool = create_policy("lru", CAPACITY), SlotPool(CAPACITY)
            shelves.append(Shelf(len(shelves), name, group, addressed_by, pool, policy))
        super().__init__(shelves, Counters(), None)
        self.host, self.other_group, self.ssd = self.shelves

    def store(self, shelf, keys):
        write = self.reserve(shelf, keys)
        slots = self.slots_of(write)
        self.finish(write, write.end_block - write.first_block, None)
        return slots

    def slots_of(self, write):
        slots = array("q")
        for residency in reversed(list(write.residency.up_to(write.first_block))):
            slots.frombytes(residency.slots)
        return slots.tolist()

    def lease(self, shelf, keys):
        match = self.match(shelf, keys)
        return Lease("request", 0, match.num_blocks, residency=match.residency)

    def reservation(self, shelf, keys):
        write = self.reserve(shelf, keys)
        num_blocks = write.end_block - write.first_block
        return Reservation("request", write.first_block, num_blocks, write=write)


@pytest.fixture
def tiers():
    return Tiers()


def unpack(place):
    return array("q", place.slots).tolist()


@pytest.mark.parametrize(("first", "num"), [(0, 10), (0, 1), (9, 1), (3, 5)])
def test_a_load_names_the_slots_of_its_part_of_the_lease(tiers, first, num):
    slots = tiers.store(tiers.host, A)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.host, A), PAGES, first, num)
    assert unpack(plan.source) == slots[first : first + num]
    assert plan.num_blocks == num


@pytest.mark.parametrize(("first", "num"), [(0, 7), (3, 2), (4, 3), (0, 4)])
def test_a_load_goes_over_the_runs_of_a_path(tiers, first, num):
    shared = tiers.store(tiers.host, A)[:4]
    slots = shared + tiers.store(tiers.host, B)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.host, B), PAGES, first, num)
    assert unpack(plan.source) == slots[first : first + num]


def test_a_load_of_what_was_split_after_the_match_is_the_same(tiers):
    slots = tiers.store(tiers.host, A)
    lease = tiers.lease(tiers.host, A)
    tiers.store(tiers.host, B)
    plan = planner.plan_get(TICKET, lease, PAGES, 2, 6)
    assert unpack(plan.source) == slots[2:8]


def test_a_load_stays_inside_the_lease_when_its_run_has_grown(tiers):
    tiers.store(tiers.host, A[:4])
    lease = tiers.lease(tiers.host, A)
    tiers.store(tiers.host, A)
    with pytest.raises(LeaseError, match=r"blocks 0 to 5 .* holds 0 to 4"):
        planner.plan_get(TICKET, lease, PAGES, 0, 5)


@pytest.mark.parametrize(("first", "num"), [(-1, 2), (0, 0), (10, 1), (5, 6)])
def test_blocks_outside_the_lease_are_refused(tiers, first, num):
    tiers.store(tiers.host, A)
    with pytest.raises(LeaseError, match="plan a part of what was matched"):
        planner.plan_get(TICKET, tiers.lease(tiers.host, A), PAGES, first, num)


def test_a_tier_addressed_by_key_is_planned_by_key(tiers):
    tiers.store(tiers.ssd, A)
    tiers.store(tiers.ssd, B)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.ssd, B), PAGES, 2, 4)
    assert plan.source == StoredBlocks("ssd", B[2:6], B[1])


def test_pages_are_passed_on_and_not_copied(tiers):
    tiers.store(tiers.host, A)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.host, A), PAGES, 0, 3)
    assert plan.target is PAGES


def test_a_plan_carries_its_ticket_and_its_group(tiers):
    tiers.store(tiers.other_group, A)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.other_group, A), PAGES, 0, 3)
    assert (plan.job_id, plan.epoch, plan.deadline_s, plan.group) == (9, 2, 1.5, 1)


def test_a_save_names_the_slots_that_were_reserved(tiers):
    tiers.store(tiers.host, A[:4])
    reservation = tiers.reservation(tiers.host, A)
    plan = planner.plan_put(TICKET, reservation, PAGES)
    assert plan.source is PAGES
    assert unpack(plan.target) == tiers.slots_of(reservation.write)[4:]


def test_a_copy_names_the_same_blocks_in_both_tiers(tiers):
    tiers.store(tiers.ssd, A)
    tiers.store(tiers.host, A[:3])
    reservation = tiers.reservation(tiers.host, A)
    plan = planner.plan_copy(TICKET, tiers.lease(tiers.ssd, A), reservation)
    assert plan.source == StoredBlocks("ssd", A[3:], A[2])
    assert unpack(plan.target) == tiers.slots_of(reservation.write)[3:]


def test_a_copy_of_more_than_the_lease_holds_is_refused(tiers):
    tiers.store(tiers.ssd, A[:6])
    lease = tiers.lease(tiers.ssd, A)
    with pytest.raises(LeaseError, match="holds 0 to 6"):
        planner.plan_copy(TICKET, lease, tiers.reservation(tiers.host, A))


def test_a_copy_over_another_chain_is_refused(tiers):
    tiers.store(tiers.ssd, A)
    lease = tiers.lease(tiers.ssd, A)
    with pytest.raises(LeaseError, match="match and reserve the same keys"):
        planner.plan_copy(TICKET, lease, tiers.reservation(tiers.host, B))


def test_a_copy_into_another_group_is_refused(tiers):
    tiers.store(tiers.host, A)
    lease = tiers.lease(tiers.host, A)
    with pytest.raises(LeaseError, match="in the same group"):
        planner.plan_copy(TICKET, lease, tiers.reservation(tiers.other_group, A))


def test_dropped_blocks_are_not_loaded(tiers):
    tiers.store(tiers.host, A)
    lease = tiers.lease(tiers.host, A)
    tiers.drop_from(tiers.host, A[:6])
    assert planner.plan_get(TICKET, lease, PAGES, 0, 6) is None


def test_what_lies_before_a_dropped_block_is_still_loaded(tiers):
    slots = tiers.store(tiers.host, A)
    lease = tiers.lease(tiers.host, A)
    tiers.drop_from(tiers.host, A[:6])
    plan = planner.plan_get(TICKET, lease, PAGES, 0, 5)
    assert unpack(plan.source) == slots[:5]


def test_dropped_blocks_are_not_saved_to(tiers):
    reservation = tiers.reservation(tiers.host, A)
    tiers.drop_from(tiers.host, A)
    assert planner.plan_put(TICKET, reservation, PAGES) is None


def test_dropped_blocks_are_not_copied(tiers):
    tiers.store(tiers.ssd, A)
    lease, reservation = tiers.lease(tiers.ssd, A), tiers.reservation(tiers.host, A)
    tiers.drop_from(tiers.host, A[:1])
    assert planner.plan_copy(TICKET, lease, reservation) is None


@pytest.mark.parametrize("state", [ClaimState.PLANNED, ClaimState.ENDED])
def test_nothing_is_planned_twice_or_after_the_end(tiers, state):
    tiers.store(tiers.ssd, A)
    lease, reservation = tiers.lease(tiers.ssd, A), tiers.reservation(tiers.host, A)
    lease.state = reservation.state = state
    with pytest.raises(LeaseError):
        planner.plan_get(TICKET, lease, PAGES, 0, 1)
    with pytest.raises(LeaseError):
        planner.plan_put(TICKET, reservation, PAGES)
    with pytest.raises(LeaseError):
        planner.plan_copy(TICKET, lease, reservation)
