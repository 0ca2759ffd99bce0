"""The scheduler half, and what its workers tell it, without an engine."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flexkv_connectors.session.deployment import Deployment, PageShape
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.tensorrt_llm import scheduler
from flexkv_connectors.tensorrt_llm.mailbox import mailbox_of
from flexkv_connectors.tensorrt_llm.scheduler import SchedulerHalf
from flexkv_core.config import parse_config
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import Status, TransferResult

ARGUMENTS = SimpleNamespace()


@pytest.fixture
def half():
    """The scheduler half of two ranks, that have 8 and 5 slots; pages are half a block."""
    deployment = Deployment(
        cache=parse_config({}),
        rank=0,
        num_ranks=2,
        num_replicas=1,
        num_engines=1,
        num_nodes=1,
        page_shape=PageShape(num_heads=1, page_tokens=4, token_bytes=64),
        num_layers=2,
        first_layer=0,
        total_heads=2,
        cell_heads=1,
        block_tokens=8,
        step_tokens=2048,
        engine_id="engine",
    )
    mailbox = mailbox_of(ARGUMENTS)
    mailbox.take()
    pools = {0: PoolAddress(1, 1, 1, 1, 8, 64), 1: PoolAddress(1, 1, 1, 1, 5, 64)}
    mailbox.post([RankReport(rank=rank, pool=pool) for rank, pool in pools.items()])
    half = SchedulerHalf(deployment, mailbox)
    half.handle_reports()
    return half


def request(number, num_tokens, **asked):
    tokens = list(range(num_tokens))
    return SimpleNamespace(request_id=number, get_tokens=lambda beam: tokens, **asked)


def step(half, number, num_tokens, pages=(), **output):
    """Schedule a whole new prompt, and return the orders."""
    data = SimpleNamespace(
        request_id=number,
        new_tokens=list(range(num_tokens)),
        new_block_ids=list(pages),
        computed_position=0,
        num_scheduled_tokens=num_tokens,
        **output,
    )
    return half.build_orders(SimpleNamespace(new_requests=[data], cached_requests=[]))


def nothing():
    return SimpleNamespace(new_requests=[], cached_requests=[])


def finish(plan, half, ranks=(0, 1)):
    results = {
        rank: TransferResult(
            job_id=plan.job_id, rank=rank, status=Status.OK, num_blocks=plan.num_blocks
        )
        for rank in ranks
    }
    mailbox_of(ARGUMENTS).post(
        [RankReport(rank=rank, results=[result]) for rank, result in results.items()]
    )


def save(half, number=1, num_tokens=24):
    half.match(request(number, num_tokens), 0)
    orders = step(half, number, num_tokens, range(num_tokens // 4))
    [plan] = orders.saves
    finish(plan, half)
    half.finish(number)


def test_there_are_as_many_blocks_as_every_rank_has_slots(half):
    assert half.session.manager.num_free_blocks() == 5


def test_blocks_are_findable_when_every_rank_has_reported(half):
    half.match(request(1, 24), 0)
    [plan] = step(half, 1, 24, range(6)).saves
    finish(plan, half, ranks=[0])
    assert half.match(request(2, 25), 0) == 0
    finish(plan, half, ranks=[1])
    assert half.match(request(3, 25), 0) == 24


@pytest.mark.parametrize(
    ("asked", "num_offered"),
    [
        ({"py_return_context_logits": True}, 0),
        ({"py_additional_outputs": ["hidden_states"]}, 0),
        ({"py_return_context_logits": False, "py_additional_outputs": None}, 24),
        ({}, 24),
    ],
)
def test_a_request_that_returns_something_of_every_token_is_offered_none(half, asked, num_offered):
    save(half)
    assert half.match(request(2, 25, **asked), 0) == num_offered


def test_a_request_that_is_offered_nothing_for_what_it_returns_is_saved(half):
    half.match(request(1, 24, py_return_context_logits=True), 0)
    [plan] = step(half, 1, 24, range(6)).saves
    finish(plan, half)
    assert half.match(request(2, 25), 0) == 24


def test_a_page_that_is_not_there_ends_what_is_saved(half):
    """The second cache manager names it -1: the last page of the pool, as an index."""
    half.match(request(1, 24), 0)
    [plan] = step(half, 1, 24, [], new_block_ids_by_layer_group=[[0, 1, 2, -1, 4, 5]]).saves
    assert plan.source.page_ids == [0, 1]


def test_a_load_is_clipped_to_the_pages_that_the_engine_has_reserved(half):
    save(half)
    assert half.match(request(2, 25), 0) == 24
    half.accept(2, [7, 8, 9])
    [load] = half.build_orders(nothing()).loads
    assert list(load.plan.target.page_ids) == [7, 8, 9]
    assert load.plan.num_blocks == 2


def test_a_position_below_zero_is_nothing_computed(half):
    """The engine takes an offer off the position even where it does not use it: without reuse."""
    half.match(request(1, 40), 0)
    data = SimpleNamespace(
        request_id=1,
        new_tokens=list(range(40)),
        new_block_ids=list(range(10)),
        computed_position=-16,
        num_scheduled_tokens=8,
    )
    assert half.build_orders(SimpleNamespace(new_requests=[data], cached_requests=[])).saves == []


def test_pages_told_behind_those_of_an_earlier_allocation_are_not_saved(half):
    """An engine that preempts by ending a request may go on where it had stopped to tell."""
    half.match(request(1, 24), 0)
    [_] = step(half, 1, 24, range(6)).saves
    half.finish(1)
    half.session.manager.reset()
    half.match(request(1, 32), 0)
    half.accept(1, [10, 11])  # of its first chunk
    data = SimpleNamespace(
        request_id=1,
        new_tokens=list(range(24, 32)),
        new_block_ids=[16, 17],  # behind six pages, of which four were never told
        computed_position=24,
        num_scheduled_tokens=8,
    )
    assert half.build_orders(SimpleNamespace(new_requests=[], cached_requests=[data])).saves == []


def test_a_request_that_decodes_is_looked_at_when_a_block_is_full(half, monkeypatch):
    half.match(request(1, 8), 0)
    step(half, 1, 8, range(2))
    visits, plan_save = [], half.session.plan_save

    def counted(state, num_computed):
        visits.append(num_computed)
        return plan_save(state, num_computed)

    monkeypatch.setattr(half.session, "plan_save", counted)
    for position in range(8, 24):
        data = SimpleNamespace(
            request_id=1,
            new_tokens=[position],
            new_block_ids=[position // 4] if position % 4 == 0 else [],
            computed_position=position,
            num_scheduled_tokens=1,
        )
        half.build_orders(SimpleNamespace(new_requests=[], cached_requests=[data]))
    assert visits == [16, 24]
    assert half.session.manager.num_used_blocks() == 3


def test_an_offer_waits_for_its_pages(half):
    save(half)
    half.match(request(2, 25), 0)
    assert half.build_orders(nothing()).loads == []
    half.accept(2, list(range(7)))
    assert len(half.build_orders(nothing()).loads) == 1


@pytest.mark.parametrize(
    ("dropped", "pages"),
    [
        (range(8), [12, 13, 14, 15]),
        (range(6), [11, 12, 13, 14, 15]),
        (range(12, 24), [10, 11, 12]),
        (range(10, 24), [10, 11, 12]),
    ],
)
def test_an_offer_is_shortened_at_either_end(half, dropped, pages):
    save(half)
    half.match(request(2, 25), 0)
    half.accept(2, list(range(10, 17)))
    half.shorten(2, dropped)
    [load] = half.build_orders(nothing()).loads
    assert list(load.plan.target.page_ids) == pages


def test_an_offer_that_is_taken_back_whole_lets_go_of_its_blocks(half):
    save(half)
    half.match(request(2, 25), 0)
    half.accept(2, list(range(7)))
    half.shorten(2, range(24))
    [load] = half.build_orders(nothing()).loads
    assert load.plan is None
    half.session.manager.check_integrity()
    assert half.session.manager._claims == {}


def test_a_request_that_ends_with_an_offer_lets_go_of_its_blocks(half):
    save(half)
    half.match(request(2, 25), 0)
    assert half.finish(2) is False
    assert half.session.manager._claims == {}
    half.require_planned()


def test_requests_that_have_ended_are_not_kept_for_ever(half):
    """Nobody forgets them if the steps are not counted."""
    half.match(request(1, 20), 0)
    state = half.session.states["1"]
    half.finish(1)
    assert any(state in step for step in half.session._ended)
    for _ in range(16):
        half.build_orders(nothing())
    assert not any(state in step for step in half.session._ended)


def test_requests_that_the_engine_names_no_more_are_forgotten(half, monkeypatch):
    """It tells of those that were cancelled in some versions only."""
    monkeypatch.setattr(scheduler, "_INTERVAL_S", -1.0)
    save(half)
    for number in (2, 3, 4):
        half.match(request(number, 25), 0)
    half.accept(3, list(range(7)))
    half.finish(4)
    half.match(request(4, 4), 0)
    kept = []
    for _ in range(3):
        step(half, 5, 4)
        kept.append(sorted(map(int, half.session.states)))
    assert kept == [[2, 3, 4], [2, 3], [2, 3]]


def test_short_hits_are_not_worth_a_load(half, monkeypatch):
    save(half)
    cache = parse_config({"min_load_tokens": 25})
    deployment = half._deployment
    monkeypatch.setattr(half.session, "_deployment", replace(deployment, cache=cache))
    assert half.match(request(2, 25), 0) == 0


def test_both_halves_of_an_engine_get_one_mailbox_whoever_comes_first():
    one, other = SimpleNamespace(), SimpleNamespace()
    assert mailbox_of(one) is mailbox_of(one)
    assert mailbox_of(one) is not mailbox_of(other)
