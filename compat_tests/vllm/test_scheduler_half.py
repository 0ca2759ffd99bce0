"""The scheduler half and what its workers tell it, without an engine."""

import dataclasses
import gc
import weakref
from hashlib import sha256
from types import SimpleNamespace

import msgspec
import pytest
from half_rig import (
    BLOCK_TOKENS,
    NUM_TOKENS,
    PROMPT,
    compute,
    demoted,
    num_in_host_memory,
    ready_half_of,
    report_of,
    request_of,
    saved,
    serve,
)

from flexkv_core.metrics import Counters
from flexkv_core.plan import StoredKey

KEY = sha256(b"block").digest()


def test_what_a_rank_has_found_counts_although_another_reports_later(half):
    for rank in range(2):
        half.handle_reports(report_of(rank, [StoredKey(KEY, None)]))
    half.session.ssd.take_orders(0.0)
    assert half.session.manager.lookup([KEY], tier="ssd").num_ready == 1


def end_before_there_is_a_pool(half):
    """Serve a request in one step, from whose reports the first pools are known."""
    request = request_of()
    half.match(request, 0)
    assert compute(half, request) is None
    request.num_computed_tokens = NUM_TOKENS
    half.finish(request)


def late_saves(half):
    """Return what the next step saves of requests that have ended."""
    nothing = SimpleNamespace(
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[], new_block_ids=[], num_computed_tokens=[], resumed_req_ids=()
        ),
        num_scheduled_tokens={},
        total_num_scheduled_tokens=0,
    )
    return half.build_orders(nothing).late_saves


def test_a_request_that_ends_in_the_step_that_opens_the_pools_is_saved(half):
    end_before_there_is_a_pool(half)
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
    [plan] = late_saves(half)
    assert plan.num_blocks == 4


def test_a_request_whose_pages_may_be_used_again_before_the_pools_open_is_not(half):
    end_before_there_is_a_pool(half)
    half.handle_reports(report_of(0, []))
    assert late_saves(half) == []
    half.handle_reports(report_of(1, []))
    assert late_saves(half) == []


def test_a_request_that_ended_before_a_reset_is_not_saved_either(half):
    end_before_there_is_a_pool(half)
    half.session.reset()
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
    assert late_saves(half) == []


@pytest.mark.parametrize(
    ("media", "num_lasting"), [((), 4), ((140,), 2), ((200, 70), 1), ((0,), 0)]
)
def test_blocks_from_the_first_picture_on_stay_in_the_process(ready, media, num_lasting):
    serve(ready, request_of(media=media))
    assert num_in_host_memory(ready) == 4
    assert demoted(ready) == num_lasting


def test_pictures_whose_identifiers_are_hashes_may_leave_it(deployment, adapters):
    cache = msgspec.structs.replace(deployment.cache, media_ids_are_hashes=True)
    trusting = dataclasses.replace(deployment, cache=cache)
    half = ready_half_of(trusting, adapters)
    serve(half, request_of(media=(140,)))
    assert demoted(half) == 4


def test_pictures_are_not_brought_back_from_where_an_earlier_process_left_them(half):
    request = request_of(media=(140,))
    state = half._state(request)
    keys = list(state.keys())
    chain = [StoredKey(key, parent) for key, parent in zip(keys, [None, *keys], strict=False)]
    for rank in range(2):
        half.handle_reports(report_of(rank, chain))
    half.session.ssd.take_orders(0.0)

    assert half.match(request, 0) is None, "the blocks before it are waited for"
    plans = half.session.ssd.take_orders(0.0).plans
    assert sum(plan.num_blocks for plan in plans) == 2


def test_pictures_in_host_memory_are_found_there(ready):
    serve(ready, request_of(media=(140,)))
    assert serve(ready, request_of(media=(140,), request_id="again")) == NUM_TOKENS


def test_a_reset_before_the_workers_have_told_anything_is_not_lost(half):
    """What they have found is of other weights than those that the engine has now."""
    half.session.reset()
    for rank in range(2):
        half.handle_reports(report_of(rank, [StoredKey(KEY, None)]))
    orders = half.session.ssd.take_orders(0.0)
    assert orders.generation
    assert half.session.manager.num_used_blocks("ssd") == 0


def test_without_a_reset_what_both_ranks_have_found_is_restored(half):
    for rank in range(2):
        half.handle_reports(report_of(rank, [StoredKey(KEY, None)]))
    orders = half.session.ssd.take_orders(0.0)
    assert not orders.generation
    assert half.session.manager.num_used_blocks("ssd") == 1


def test_requests_that_have_ended_are_not_kept_for_ever(ready):
    """Nobody forgets them if the steps are not counted."""
    request, others = request_of(), [request_of(request_id=f"r{number}") for number in range(16)]
    ready.match(request, 0)
    compute(ready, request)
    ended = ready.session.states["request"]
    ready.finish(request)
    assert any(ended in step for step in ready.session._ended)
    for other in others:
        compute(ready, other)
    assert not any(ended in step for step in ready.session._ended)


@pytest.mark.parametrize("media", [(), (100,)])
def test_with_events_on_a_request_that_has_ended_is_let_go_of(deployment, adapters, media):
    """Its pictures may take megabytes, and its blocks may be announced long after its end."""
    half = ready_half_of(dataclasses.replace(deployment, publishes_events=True), adapters)
    request = request_of(media=media)
    half.match(request, 0)
    plan = compute(half, request)
    half.finish(request)
    is_alive = weakref.ref(request)
    del request
    saved(half, plan)
    for number in range(16):
        compute(half, request_of(request_id=f"r{number}"))
    gc.collect()
    assert is_alive() is None
    assert [event.token_ids for event in half.take_events()] == [PROMPT]


@pytest.mark.parametrize("load_async", [True, False])
def test_loaded_tokens_are_counted_whether_their_step_waits_for_them_or_not(
    deployment, adapters, load_async
):
    cache = msgspec.structs.replace(deployment.cache, load_async=load_async)
    counters = Counters()
    half = ready_half_of(dataclasses.replace(deployment, cache=cache), adapters, counters)
    serve(half, request_of())
    request = request_of(request_id="again")
    num_tokens = half.match(request, 0)
    load = half.accept(request, list(range(NUM_TOKENS // 16)), num_tokens)
    if load_async:
        saved(half, load.plan)
        compute(half, request)
    else:
        compute(half, request)
        saved(half, load.plan)
    assert counters.drain()["load_tokens"] == num_tokens


def decode(half, request, num_tokens, page_ids=None):
    """Let the engine compute a token of `request` in each of `num_tokens` steps; count the visits.

    Args:
        half: The scheduler half.
        request: Has been computed but for its last token.
        num_tokens: How many steps.
        page_ids: New pages of the request, told in the first of them.
    """
    visits, plan_save = [], half.session.plan_save

    def counted(state, num_computed):
        visits.append(num_computed)
        return plan_save(state, num_computed)

    half.session.plan_save = counted
    name, new_pages = request.request_id, [page_ids]
    for _ in range(num_tokens):
        request.append_output_token_ids(7)
        known = SimpleNamespace(
            req_ids=[name],
            new_block_ids=[new_pages.pop() if new_pages else None],
            num_computed_tokens=[request.num_tokens - 1],
            resumed_req_ids=(),
        )
        half.build_orders(
            SimpleNamespace(
                scheduled_new_reqs=[],
                scheduled_cached_reqs=known,
                num_scheduled_tokens={name: 1},
                total_num_scheduled_tokens=1,
            )
        )
    half.session.plan_save = plan_save
    return visits


@pytest.mark.parametrize("draft_blocks", [0, 1])
def test_a_request_that_decodes_is_looked_at_when_a_block_can_be_saved(
    deployment, adapters, draft_blocks
):
    half = ready_half_of(dataclasses.replace(deployment, draft_blocks=draft_blocks), adapters)
    request = request_of()
    half.match(request, 0)
    compute(half, request)
    visits = decode(half, request, 3 * BLOCK_TOKENS, (list(range(16, 28)),))
    assert visits == [5 * BLOCK_TOKENS, 6 * BLOCK_TOKENS, 7 * BLOCK_TOKENS]
    assert num_in_host_memory(half) == 7 - draft_blocks


def test_a_request_that_is_not_to_be_saved_is_not_looked_at(ready):
    request = request_of()
    request.kv_transfer_params = {"flexkv": {"save": False}}
    ready.match(request, 0)
    compute(ready, request)
    assert decode(ready, request, 2 * BLOCK_TOKENS, (list(range(16, 24)),)) == []
