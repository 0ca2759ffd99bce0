"""Plans name exactly the blocks that were asked for, wherever they lie."""

from array import array

import pytest

from flexkv_core.block.keys import KeyChain
from flexkv_core.control import planner
from flexkv_core.control.eviction.policies import create_policy
from flexkv_core.control.index.node import TierState
from flexkv_core.control.index.radix import PrefixIndex
from flexkv_core.control.index.slot_pool import SlotPool
from flexkv_core.control.lease import ClaimState, Lease, Reservation
from flexkv_core.control.planner import Ticket
from flexkv_core.errors import LeaseError
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, StoredBlocks

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
    """A host tier, and an ssd tier that is addressed by key."""

    def __init__(self):
        tiers = []
        for name, addressed_by in (("host", "slot"), ("ssd", "key")):
            policy, pool = create_policy("lru", CAPACITY), SlotPool(CAPACITY)
            tiers.append(TierState(len(tiers), name, addressed_by, pool, policy))
        super().__init__(tiers, Counters(), None)
        self.host, self.ssd = self.tiers

    def store(self, tier, keys):
        write = self.reserve(tier, keys)
        slots = self.slots_of(write)
        self.finish(write, write.end_block - write.first_block)
        return slots

    def slots_of(self, write):
        slots = array("q")
        for entry in reversed(list(write.entry.up_to(write.first_block))):
            slots.frombytes(entry.slots)
        return slots.tolist()

    def lease(self, tier, keys):
        match = self.match(tier, keys)
        return Lease("request", 0, match.num_blocks, entry=match.entry)

    def reservation(self, tier, keys):
        write = self.reserve(tier, keys)
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
    with pytest.raises(LeaseError, match="plan only blocks that were matched"):
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


def test_a_plan_carries_its_ticket(tiers):
    tiers.store(tiers.host, A)
    plan = planner.plan_get(TICKET, tiers.lease(tiers.host, A), PAGES, 0, 3)
    assert (plan.job_id, plan.epoch, plan.deadline_s) == (9, 2, 1.5)


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
