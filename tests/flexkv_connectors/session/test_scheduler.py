"""What is offered, planned, concluded and forgotten, whatever the engine."""

import pytest

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.session.scheduler import SchedulerSession
from flexkv_core.config import parse_config
from flexkv_core.control.hierarchy import in_flight
from flexkv_core.control.index.tree import KeyTree
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.metrics import Counters
from flexkv_core.plan import Status, StoredBlocks, StoredKey, TierReport, TransferResult

NUM_SLOTS = 8


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def open_session(make_deployment, counters):
    """Return a function that opens the session of two ranks."""

    def run(ssd_blocks=None, recovered=(), announcer=None, **changes):
        session = SchedulerSession(make_deployment(**changes), counters, announcer)
        session.handle_reports(opened(rank, ssd_blocks, recovered) for rank in range(2))
        return session

    return run


@pytest.fixture
def announcer():
    return Announcer()


@pytest.fixture
def session(open_session):
    return open_session()


def opened(rank, ssd_blocks=None, recovered=()):
    """Return the first report of a rank."""
    pool = PoolAddress(1, 1, 1, 1, NUM_SLOTS + rank, 64)
    ssd = None
    if ssd_blocks is not None:
        ssd = TierReport(
            tier="ssd",
            rank=rank,
            capacity_blocks=ssd_blocks,
            recovered=list(recovered),
            is_recovered=True,
        )
    return RankReport(rank=rank, pool=pool, ssd=ssd)


def end(session, plan, status=Status.OK, ranks=(0, 1)):
    """Let ranks report on a plan."""
    num_blocks = plan.num_blocks if status is Status.OK else 0
    for rank in ranks:
        result = TransferResult(
            job_id=plan.job_id, rank=rank, status=status, num_blocks=num_blocks, epoch=plan.epoch
        )
        session.handle_reports([RankReport(rank=rank, results=[result])])


@pytest.fixture
def begin(make_request):
    """Return a function that lets a request arrive, with or without its pages."""

    def run(session, name, num_tokens, first_page=None):
        request = make_request(name, num_tokens)
        if first_page is not None:
            request.page_ids = list(range(first_page, first_page + -(-num_tokens // 4)))
        session.states[name] = request
        return request

    return run


@pytest.fixture
def save(begin):
    """Return a function that has 24 tokens computed and saved."""

    def run(session, name="writer"):
        request = begin(session, name, 24, first_page=0)
        plan = session.plan_save(request, 24)
        end(session, plan)
        session.end(request)
        return plan

    return run


def test_nothing_is_cached_until_every_owner_has_opened_its_pool(make_deployment, counters, begin):
    session = SchedulerSession(make_deployment(), counters)
    request = begin(session, "r", 24, first_page=0)
    session.handle_reports([opened(1)])
    assert session.manager is None
    assert session.is_waiting
    assert (session.offer(request, 0), session.plan_save(request, 24)) == (0, None)
    session.handle_reports([opened(0)])
    assert session.manager.num_free_blocks() == NUM_SLOTS
    assert not session.is_waiting


def test_nothing_is_offered_until_every_replica_reads_the_pool_of_its_owner(
    open_session, save, begin
):
    session = open_session(num_replicas=2)
    save(session)
    request = begin(session, "r", 25)
    assert session.offer(request, 0) == 0
    assert not session.fetch(request)
    session.handle_reports([RankReport(rank=1, attached=True)])
    assert session.offer(request, 0) == 24


def test_what_was_saved_is_offered_behind_what_the_engine_has(session, save, begin):
    save(session)
    request = begin(session, "r", 25)
    assert session.offer(request, 4) == 20
    assert request.offer == range(4, 24)


def test_an_offer_is_the_same_however_often_it_is_asked_for(session, save, begin):
    save(session)
    request = begin(session, "r", 25)
    assert [session.offer(request, 0) for _ in range(2)] == [24, 24]
    session.withdraw(request)
    assert session.manager._claims == {}


def test_an_offer_that_is_too_short_holds_nothing(open_session, save, begin):
    session = open_session(cache=parse_config({"min_load_tokens": 24}))
    save(session)
    assert session.offer(begin(session, "long", 25), 0) == 24
    short = begin(session, "short", 24)
    assert session.offer(short, 0) == 0
    assert short.lease is None


def test_a_load_begins_within_a_block_where_the_engine_has_the_rest(session, save, begin):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 4)
    load = session.plan_load(request)
    assert load.page_ids == list(load.plan.target.page_ids) == [11, 12, 13, 14, 15]
    assert (load.plan.target.first_page, load.plan.num_blocks) == (1, 3)


def test_a_load_reaches_as_far_as_there_are_pages(session, save, begin):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    request.page_ids[3] = -1
    load = session.plan_load(request)
    assert load.page_ids == [10, 11, 12]
    assert load.plan.num_blocks == 2


def test_a_load_without_pages_has_no_plan_and_holds_nothing(session, save, begin):
    save(session)
    request = begin(session, "r", 25)
    session.offer(request, 0)
    load = session.plan_load(request)
    assert (load.page_ids, load.plan) == ([], None)
    assert session.manager._claims == {}


def test_an_offer_that_a_reset_has_taken_back_cannot_be_planned(session, save, begin):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    session.reset()
    load = session.plan_load(request)
    assert (len(load.page_ids), load.plan) == (6, None)


def test_pages_are_being_written_to_until_the_last_rank_has_reported(session, save, begin):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    plan = session.plan_load(request).plan
    end(session, plan, ranks=[0])
    assert request.is_loading
    assert session.is_waiting
    end(session, plan, ranks=[1])
    assert not request.is_loading


def load(session, request):
    """Have a request of 25 tokens loaded by both ranks, all but its last."""
    session.offer(request, 0)
    plan = session.plan_load(request).plan
    request.offer = range(0)  # an engine that loads within a step has computed it by then
    end(session, plan)


def test_tokens_are_counted_when_they_are_loaded_and_saved(session, save, begin, counters):
    save(session)
    load(session, begin(session, "r", 25, first_page=10))
    counts = counters.drain()
    assert (counts["save_tokens"], counts["load_tokens"]) == (24, 24)
    assert counts.get("ssd_load_tokens", 0) == 0


def test_tokens_of_a_request_that_has_ended_meanwhile_are_given_back_to_nobody(
    session, save, begin, counters
):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    plan = session.plan_load(request).plan
    session.end(request)
    end(session, plan)
    assert "load_tokens" not in counters.drain()


def test_tokens_of_a_request_that_ends_in_the_step_that_loads_them_are_counted(
    open_session, save, begin, counters
):
    session = open_session(cache=parse_config({"load_async": False}))
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    plan = session.plan_load(request).plan
    session.end(request)
    end(session, plan)
    assert counters.drain()["load_tokens"] == 24


def test_hits_are_blocks_that_are_given_beyond_what_the_engine_has(session, save, begin, counters):
    save(session)
    session.offer(begin(session, "engine has all", 25), 24)
    waiting = begin(session, "engine has a block", 25)
    for _ in range(3):
        session.offer(waiting, 8)
    assert counters.drain().get("match_hit_blocks", 0) == 0, "only offered until there is room"
    waiting.page_ids = list(range(7))
    session.plan_load(waiting)
    assert counters.drain()["match_hit_blocks"] == 2


def test_a_hit_that_cannot_be_loaded_is_no_loaded_token(session, save, begin, counters):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    end(session, session.plan_load(request).plan, Status.ERROR)
    counts = counters.drain()
    assert (counts["match_hit_blocks"], counts["load_failed_blocks"]) == (3, 3)
    assert "load_tokens" not in counts


def test_a_request_that_finds_nothing_is_one_miss_however_often_it_is_asked_about(
    session, save, begin, counters
):
    request = begin(session, "r", 25)
    for _ in range(3):
        session.fetch(request)
        session.offer(request, 0)
    assert counters.drain()["match_miss"] == 1


def test_a_request_is_one_use_however_often_it_is_asked_about_or_preempted(
    session, save, begin, monkeypatch
):
    save(session)
    uses = []
    note_use = session.manager.note_use
    monkeypatch.setattr(session.manager, "note_use", lambda keys: uses.append(1) or note_use(keys))
    request = begin(session, "r", 25, first_page=10)
    for _ in range(2):
        session.fetch(request)
        session.offer(request, 0)
        session.withdraw(request)
        load(session, request)
    assert len(uses) == 1


def test_a_request_whose_load_failed_does_not_load_again(session, save, begin):
    save(session)
    request = begin(session, "r", 25, first_page=10)
    session.offer(request, 0)
    end(session, session.plan_load(request).plan, Status.ERROR)
    assert not request.may_load


def test_a_request_whose_save_failed_does_not_save_again(session, begin):
    request = begin(session, "r", 32, first_page=0)
    end(session, session.plan_save(request, 24), Status.ERROR)
    assert not request.may_save
    assert session.plan_save(request, 32) is None


def test_a_request_whose_save_found_a_busy_lane_tries_again_with_its_next_block(session, begin):
    request = begin(session, "r", 32, first_page=0)
    end(session, session.plan_save(request, 24), Status.BUSY)
    assert session.plan_save(request, 32).num_blocks == 4


def test_a_busy_lane_is_no_failed_save(session, begin, counters, caplog):
    request = begin(session, "r", 32, first_page=0)
    end(session, session.plan_save(request, 24), Status.BUSY)
    counts = counters.drain()
    assert (counts["save_busy_blocks"], counts.get("save_failed_blocks", 0)) == (3, 0)
    assert "transfer.failed" not in caplog.text


def test_only_blocks_that_nobody_has_are_saved(session, save, begin):
    save(session)
    request = begin(session, "r", 32, first_page=10)
    plan = session.plan_save(request, 32)
    assert list(plan.source.page_ids) == [16, 17]
    assert session.plan_save(request, 32) is None


def test_what_finds_no_place_in_device_memory_is_saved_later(session, begin):
    session.handle_reports([RankReport(rank=0, staging=2)])
    request = begin(session, "r", 24, first_page=0)
    plan = session.plan_save(request, 24)
    assert plan.num_blocks == 2
    end(session, plan)
    assert session.plan_save(request, 24).num_blocks == 1


def test_a_reset_forgets_blocks_and_saves_no_request_that_has_begun(session, save, begin):
    save(session)
    begun, new = begin(session, "begun", 25, first_page=10), begin(session, "new", 25)
    session.offer(new, 0)
    session.reset()
    assert session.offer(new, 0) == 0
    assert session.manager._claims == {}
    assert (begun.may_save, new.may_save) == (False, True)


def test_failed_pages_are_rubbish_with_all_behind_them_and_their_blocks_are_dropped(
    session, save, begin
):
    save(session)
    loading, ended = begin(session, "loading", 25, 10), begin(session, "ended", 25, 20)
    session.end(ended)
    other = begin(session, "other", 25, 30)
    assert session.drop_failed_pages({13, 24}) == {13, 14, 15, 16, 24, 25, 26}
    assert session.offer(other, 0) == 8
    assert (loading.lease, ended.lease) == (None, None)


def test_a_load_may_fail_after_its_request_has_ended_and_later_steps_were_ordered(session, begin):
    """Asynchronous scheduling, and pipeline stages: an engine orders steps ahead."""
    ended = begin(session, "ended", 25, 20)
    session.end(ended)
    session.begin_orders()
    session.begin_orders()
    assert session.drop_failed_pages({24}) == {24, 25, 26}


def test_requests_that_ended_many_steps_ago_are_not_looked_at_for_failed_pages(session, begin):
    session.end(begin(session, "ended", 25, 20))
    for _ in range(16):
        session.begin_orders()
    assert session.drop_failed_pages({24}) == {24}


def test_a_tier_in_which_a_rank_can_keep_nothing_is_left_out(open_session, caplog):
    session = open_session(ssd_blocks=0)
    assert session.ssd is None
    assert "tier.off tier=ssd" in caplog.text


def test_saved_blocks_go_on_to_ssd(open_session, save):
    session = open_session(ssd_blocks=8)
    session.take_ssd_orders()
    save(session)
    [plan] = session.take_ssd_orders().plans
    assert isinstance(plan.target, StoredBlocks)
    assert plan.num_blocks == 2, "a quarter of host memory at once"


def test_a_tier_with_blocks_to_copy_is_open_once_its_own_are_restored(open_session, save):
    session = open_session(ssd_blocks=8, recovered=[StoredKey(bytes(32), None)])
    assert session.is_opening
    session.take_ssd_orders()
    save(session)
    assert session.ssd.has_work
    assert not session.is_opening


def test_blocks_on_ssd_are_fetched_and_counted_when_they_are_loaded(
    open_session, make_request, begin, counters
):
    keys = list(make_request("earlier process", 24).keys())
    chain = [StoredKey(key, parent) for key, parent in zip(keys, [None, *keys], strict=False)]
    session = open_session(ssd_blocks=8, recovered=chain)
    session.take_ssd_orders()
    request = begin(session, "r", 25, first_page=10)
    assert session.fetch(request)
    [plan] = session.take_ssd_orders().plans
    end(session, plan)
    assert not session.fetch(request)
    load(session, request)
    counts = counters.drain()
    assert (counts["load_tokens"], counts["ssd_load_tokens"]) == (24, 24)


def test_what_a_preempted_request_gets_back_of_its_own_does_not_come_from_ssd(
    open_session, begin, counters
):
    session = open_session(ssd_blocks=8)
    session.take_ssd_orders()
    request = begin(session, "r", 25, first_page=10)
    session.fetch(request)
    end(session, session.plan_save(request, 25))
    session.offer(request, 0)
    plan = session.plan_load(request).plan
    request.note_tried(0)  # it runs again
    end(session, plan)
    counts = counters.drain()
    assert (counts["load_tokens"], counts.get("ssd_load_tokens", 0)) == (24, 0)


def test_a_reset_before_the_ranks_have_reported_is_made_up_for(make_deployment, counters):
    session = SchedulerSession(make_deployment(), counters)
    session.reset()
    session.handle_reports(opened(rank, ssd_blocks=8) for rank in range(2))
    assert session.take_ssd_orders().generation


def test_how_full_the_tiers_are_is_told_with_the_counts(open_session, save):
    session = open_session(ssd_blocks=8)
    save(session)
    counts = session.take_counts()
    assert counts["host_used_blocks"] == 3
    assert counts["ssd_capacity_blocks"] == 8


@pytest.fixture
def walks(monkeypatch):
    """Count how often the tree is walked from its root."""
    counted, descend = [], KeyTree.descend

    def count(index, keys, start):
        counted.append(len(keys))
        return descend(index, keys, start)

    monkeypatch.setattr(KeyTree, "descend", count)
    return counted


def ask_for_another(session, walks):
    """Ask for a chain that nobody has, and count from here on."""
    assert not session.manager.lookup([bytes(32)], tier="host").num_known
    walks.clear()


def test_a_request_that_arrives_is_looked_for_once(open_session, save, begin, walks):
    """Whether it is in a tier, how much of it each has, and what to do about it: one question."""
    session = open_session(ssd_blocks=8)
    session.take_ssd_orders()
    save(session)
    for num_tokens in (24, 33):
        request = begin(session, f"{num_tokens} tokens", num_tokens)
        ask_for_another(session, walks)
        assert not session.fetch(request)
        assert session.offer(request, 0) > 0
        assert len(walks) == 1


def test_blocks_on_ssd_are_looked_for_once_however_many_copies_bring_them(
    make_request, open_session, begin, walks, monkeypatch
):
    monkeypatch.setattr(in_flight, "_MIN_PLAN_BYTES", 1)
    keys = list(make_request("earlier process", 48).keys())
    chain = [StoredKey(key, parent) for key, parent in zip(keys, [None, *keys], strict=False)]
    session = open_session(ssd_blocks=8, recovered=chain)
    session.take_ssd_orders()
    request = begin(session, "r", 49, first_page=10)
    ask_for_another(session, walks)
    assert session.fetch(request)
    plans = session.take_ssd_orders().plans
    assert len(plans) > 1
    for plan in plans:
        assert session.fetch(request)
        end(session, plan)
    assert not session.fetch(request)
    assert session.offer(request, 0) == 32, "a copy takes at most half of host memory"
    assert len(walks) == 1


def said(announcer):
    """Return what is announced, as kinds, tiers and names."""
    return [
        (type(one).__name__, one.tier, [name for block in one.blocks for name in block.names])
        for one in announcer.take()
    ]


def test_routers_are_told_of_what_is_saved_once_it_is_found(open_session, begin, announcer):
    session = open_session(announcer=announcer)
    request = begin(session, "writer", 24, first_page=0)
    plan = session.plan_save(request, 24)
    assert said(announcer) == []
    session.end(request)
    end(session, plan)
    assert said(announcer) == [("PagesStored", "host", [1, 2, 3, 4, 5, 6])]


def test_routers_are_not_told_of_a_save_that_failed(open_session, begin, announcer):
    session = open_session(announcer=announcer)
    plan = session.plan_save(begin(session, "writer", 24, first_page=0), 24)
    end(session, plan, Status.ERROR)
    assert said(announcer) == []


def test_routers_are_told_of_copies_by_the_names_of_the_original(open_session, save, announcer):
    session = open_session(ssd_blocks=8, announcer=announcer)
    session.take_ssd_orders()
    save(session)
    said(announcer)
    [plan] = session.take_ssd_orders().plans
    end(session, plan)
    assert said(announcer) == [("PagesStored", "ssd", [1, 2, 3, 4])]


def test_routers_are_told_of_an_earlier_process_when_tokens_come(
    open_session, make_request, begin, announcer
):
    keys = list(make_request("earlier process", 24).keys())
    chain = [StoredKey(key, parent) for key, parent in zip(keys, [None, *keys], strict=False)]
    session = open_session(ssd_blocks=8, recovered=chain, announcer=announcer)
    session.take_ssd_orders()
    assert said(announcer) == []
    session.fetch(begin(session, "r", 17))
    assert said(announcer) == [("PagesStored", "ssd", [1, 2, 3, 4])]


def test_routers_are_told_of_each_block_that_a_reset_drops(open_session, save, announcer):
    session = open_session(announcer=announcer)
    save(session)
    said(announcer)
    session.reset()
    assert said(announcer) == [("PagesRemoved", "host", [1, 2, 3, 4, 5, 6])]


def test_routers_that_forgot_are_told_what_goes_before_the_next_save(
    open_session, begin, announcer
):
    session = open_session(announcer=announcer)
    request = begin(session, "writer", 24, first_page=0)
    end(session, session.plan_save(request, 16))
    announcer.forget()
    end(session, session.plan_save(request, 24))
    told = said(announcer)
    assert {(kind, tier) for kind, tier, _ in told} == {("PagesStored", "host")}
    assert [name for _, _, names in told for name in names] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_said_of_a_save_is_counted(
    open_session, begin, announcer, counters, monkeypatch
):
    session = open_session(announcer=announcer)
    request = begin(session, "writer", 24, first_page=0)
    monkeypatch.setattr(type(request), "describe", lambda *_: ())
    end(session, session.plan_save(request, 24))
    assert said(announcer) == []
    assert counters.drain()["events_unsaid_blocks"] == 3
