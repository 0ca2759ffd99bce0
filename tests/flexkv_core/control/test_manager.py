"""The four verbs, as an engine's adapter and its workers see them."""

import pytest

from flexkv_core.block.keys import KeyChain
from flexkv_core.control.index.radix import Refusal
from flexkv_core.control.job import JobKind
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.errors import ConfigError, LeaseError
from flexkv_core.events import BlocksStored, CacheCleared, EventLog
from flexkv_core.metrics import Counters
from flexkv_core.plan import EnginePages, HostSlots, Status, StoredBlocks, TransferResult

CAPACITY = 16
PAGES = EnginePages([1, 2, 3])


def chain(*tokens):
    keys = KeyChain(1)
    keys.advance(tokens)
    return keys.keys


A = chain(*range(10))


def report(plan, rank=0, num_blocks=None, **fields):
    num_blocks = plan.num_blocks if num_blocks is None else num_blocks
    fields = {"status": Status.OK, "epoch": plan.epoch} | fields
    return TransferResult(job_id=plan.job_id, rank=rank, num_blocks=num_blocks, **fields)


def store(manager, keys, **where):
    plan = manager.plan_put(manager.reserve("writer", keys, **where), PAGES)
    return manager.complete(report(plan))


def load(manager, keys, **where):
    lease = manager.match("reader", keys, **where)
    return manager.plan_get(lease, PAGES, first_block=0, num_blocks=lease.num_blocks)


def num_found(manager, keys, **where):
    lease = manager.match("asker", keys, **where)
    if lease is None:
        return 0
    manager.release(lease)
    return lease.num_blocks


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def events():
    return EventLog()


@pytest.fixture
def manager(counters, events):
    tiers = [TierSpec("host", CAPACITY), TierSpec("ssd", 2 * CAPACITY, "s3fifo", "key")]
    manager = CacheManager(tiers, recorder=counters, events=events)
    yield manager
    manager.check_integrity()


@pytest.fixture
def replicas(counters):
    """A manager of four ranks, of which 1 and 3 only read."""
    manager = CacheManager([TierSpec("host", CAPACITY)], ranks=4, owners=(0, 2), recorder=counters)
    yield manager
    manager.check_integrity()


def test_what_was_saved_is_found(manager):
    assert manager.match("a", A) is None
    completion = store(manager, A)
    assert (completion.kind, completion.request_id) == (JobKind.PUT, "writer")
    assert (completion.num_blocks, completion.num_published) == (10, 10)
    assert manager.match("b", A).num_blocks == 10


def test_a_load_is_planned_from_host_slots_into_pages(manager):
    store(manager, A)
    lease = manager.match("reader", A)
    plan = manager.plan_get(lease, PAGES, first_block=2, num_blocks=5, deadline_s=7.5)
    assert isinstance(plan.source, HostSlots)
    assert (len(plan.source.slots), plan.num_blocks, plan.deadline_s) == (5 * 8, 5, 7.5)
    assert plan.target is PAGES
    assert manager.complete(report(plan)).kind is JobKind.GET


def test_every_plan_has_a_number_of_its_own(manager):
    store(manager, A)
    assert load(manager, A).job_id != load(manager, A).job_id != 0


def test_refusals_tell_apart_why(manager):
    store(manager, A)
    held = manager.match("reader", A)
    assert manager.reserve("a", A[:4]) is Refusal.NOTHING_MISSING
    manager.reserve("b", chain(*range(100, 110)))
    assert manager.reserve("c", chain(200)) is Refusal.NO_ROOM
    manager.release(held)


def test_a_load_ends_with_the_last_of_all_ranks(replicas):
    plan = replicas.plan_put(replicas.reserve("writer", A), PAGES)
    replicas.complete(report(plan, 0))
    replicas.complete(report(plan, 2))
    plan = load(replicas, A)
    assert [replicas.complete(report(plan, rank)) for rank in (3, 0, 2)] == [None] * 3
    assert replicas.num_in_flight == 1
    assert replicas.complete(report(plan, 1, num_blocks=9)).num_blocks == 9


def test_a_save_is_found_when_the_last_owner_has_written(replicas):
    plan = replicas.plan_put(replicas.reserve("writer", A), PAGES)
    assert replicas.complete(report(plan, 2)) is None
    assert num_found(replicas, A) == 0
    assert replicas.complete(report(plan, 0, num_blocks=8)).num_published == 8
    assert num_found(replicas, A) == 8


def test_reports_that_nobody_waits_for_are_counted_and_change_nothing(replicas, counters):
    plan = replicas.plan_put(replicas.reserve("writer", A), PAGES)
    replicas.complete(report(plan, 0))
    for nonsense in (
        report(plan, 0, num_blocks=0, status=Status.ERROR),
        report(plan, 1),
        report(plan, 2, epoch=plan.epoch - 1),
        TransferResult(job_id=999, rank=0, num_blocks=0, status=Status.OK),
    ):
        assert replicas.complete(nonsense) is None
    assert counters.drain()["late_results"] == 4
    assert replicas.complete(report(plan, 2)).num_published == 10
    assert replicas.complete(report(plan, 2)) is None


def test_a_copy_between_tiers_makes_blocks_found_in_the_other(manager):
    store(manager, A)
    lease, reservation = manager.match("a", A), manager.reserve("a", A, tier="ssd")
    plan = manager.plan_copy(lease, reservation, deadline_s=3.0)
    assert (plan.target, plan.deadline_s) == (StoredBlocks("ssd", A), 3.0)
    completion = manager.complete(report(plan))
    assert (completion.kind, completion.num_published) == (JobKind.COPY, 10)
    assert num_found(manager, A, tier="ssd") == 10


def test_a_lease_ends_once(manager):
    store(manager, A)
    lease = manager.match("reader", A)
    manager.release(lease)
    with pytest.raises(LeaseError, match="is ended, expected open"):
        manager.release(lease)


def test_a_planned_lease_is_not_released(manager):
    store(manager, A)
    lease = manager.match("reader", A)
    manager.plan_get(lease, PAGES, first_block=0, num_blocks=1)
    with pytest.raises(LeaseError, match="is planned, expected open"):
        manager.release(lease)


def test_a_lease_is_not_planned_twice(manager):
    store(manager, A)
    lease = manager.match("reader", A)
    manager.plan_get(lease, PAGES, first_block=0, num_blocks=1)
    with pytest.raises(LeaseError):
        manager.plan_get(lease, PAGES, first_block=1, num_blocks=1)


def test_an_aborted_reservation_gives_its_room_back(manager):
    reservation = manager.reserve("writer", A)
    manager.abort(reservation)
    assert manager.num_free_blocks() == CAPACITY
    with pytest.raises(LeaseError):
        manager.abort(reservation)


def test_cancel_ends_what_is_open_and_leaves_what_is_planned(manager):
    store(manager, A[:4])
    running = manager.plan_put(manager.reserve("a", A[:6]), PAGES)
    lease, reservation = manager.match("a", A), manager.reserve("a", A)
    other = manager.match("b", A)
    manager.cancel("a")
    for end, claim in ((manager.release, lease), (manager.abort, reservation)):
        with pytest.raises(LeaseError):
            end(claim)
    assert manager.num_in_flight == 1
    assert manager.complete(report(running)).num_published == 2
    manager.release(other)


def test_cancelling_a_request_nobody_knows_does_nothing(manager):
    manager.cancel("nobody")


def test_a_reset_empties_every_tier_at_once(manager, events, counters):
    store(manager, A)
    store(manager, A, tier="ssd")
    events.take()
    manager.reset()
    assert (num_found(manager, A), num_found(manager, A, tier="ssd")) == (0, 0)
    assert (manager.num_used_blocks("host"), manager.num_used_blocks("ssd")) == (0, 0)
    assert events.take() == [CacheCleared()]
    assert counters.drain()["reset"] == 1


def test_slots_in_flight_outlive_a_reset_until_they_are_reported(manager, counters):
    store(manager, A[:4])
    reading = load(manager, A)
    writing = manager.plan_put(manager.reserve("writer", chain(*range(50, 56))), PAGES)
    manager.reset()
    assert manager.num_used_blocks() == 10
    assert manager.complete(report(writing)).num_published == 0
    assert manager.num_used_blocks() == 4
    assert manager.complete(report(reading)).num_blocks == 4
    assert manager.num_used_blocks() == 0
    assert counters.drain()["late_results"] == 2


def test_an_old_write_does_not_touch_what_was_written_after_a_reset(manager):
    old = manager.plan_put(manager.reserve("writer", A), PAGES)
    manager.reset()
    store(manager, A[:4])
    manager.complete(report(old))
    assert num_found(manager, A) == 4
    assert manager.num_used_blocks() == 4


def test_nothing_from_before_a_reset_is_planned(manager):
    store(manager, A[:4])
    lease, reservation = manager.match("a", A), manager.reserve("a", A)
    manager.reset()
    assert manager.plan_get(lease, PAGES, first_block=0, num_blocks=1) is None
    assert manager.plan_put(reservation, PAGES) is None
    assert manager.plan_copy(lease, manager.reserve("a", A[:4], tier="ssd")) is None
    manager.cancel("a")
    assert manager.num_used_blocks() == 0


def test_plans_of_a_new_epoch_say_so(manager):
    manager.reset()
    assert manager.plan_put(manager.reserve("a", A), PAGES).epoch == 1


def test_a_failed_write_costs_the_reservation_behind_it_its_plan(manager):
    first = manager.plan_put(manager.reserve("a", A[:4]), PAGES)
    second = manager.reserve("b", A)
    manager.complete(report(first, num_blocks=2, status=Status.ERROR))
    assert manager.plan_put(second, PAGES) is None
    manager.abort(second)
    assert manager.num_used_blocks() == 2


def test_a_corrupt_block_is_dropped_from_its_tier(manager):
    store(manager, A)
    store(manager, A, tier="ssd")
    manager.drop_from(A[:3], tier="ssd")
    assert (num_found(manager, A), num_found(manager, A, tier="ssd")) == (10, 2)


def test_a_block_that_is_dropped_while_it_is_read_is_stored_again_once_nobody_reads_it(manager):
    """Its key would be forgotten with the old copy."""
    store(manager, A, tier="ssd")
    lease = manager.match("a", A, tier="ssd")
    manager.drop_from(A[:3], tier="ssd")
    assert manager.reserve("b", A, tier="ssd") is Refusal.STILL_LEAVING
    manager.release(lease)
    assert manager.reserve("b", A, tier="ssd").first_block == 2


def test_what_a_plan_wrote_is_told(manager, events):
    store(manager, A)
    assert events.take() == [BlocksStored("host", A)]


def test_a_report_from_between_two_resets_is_late(manager, counters):
    manager.reset()
    plan = manager.plan_put(manager.reserve("writer", A), PAGES)
    manager.reset()
    manager.complete(report(plan))
    assert counters.drain()["late_results"] == 1
    assert num_found(manager, A) == 0


def test_a_request_that_holds_nothing_any_more_is_forgotten(manager):
    store(manager, A)
    manager.release(manager.match("reader", A))
    assert manager._claims == {}


def test_a_use_of_what_no_tier_holds_is_none(manager):
    assert not manager.note_use(A)
    store(manager, A[:6])
    assert manager.note_use(A)


def test_evictions_and_lack_of_room_are_counted(manager, counters):
    store(manager, A)
    manager.reserve("a", chain(*range(100, 140)))
    assert counters.drain() == {"evicted_blocks": 10, "save_no_room_blocks": 40 - CAPACITY}


@pytest.mark.parametrize("capacity_blocks", [0, -1])
def test_a_tier_without_room_is_refused(capacity_blocks):
    with pytest.raises(ConfigError, match=f"'host' has room for {capacity_blocks} blocks"):
        TierSpec("host", capacity_blocks)


def test_an_unknown_policy_is_refused(counters):
    with pytest.raises(ConfigError, match="did you mean 'lru'"):
        CacheManager([TierSpec("host", 4, "lrru")], recorder=counters)
