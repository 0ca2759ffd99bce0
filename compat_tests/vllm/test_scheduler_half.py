"""The scheduler half and what its workers tell it, without an engine."""

import dataclasses
import gc
import weakref
from hashlib import sha256
from types import SimpleNamespace

import msgspec
import pytest

from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.vllm.cpu_pages import PLAIN
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_core.config import parse_config
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.identity.as_read import Judge, Mounts
from flexkv_core.metrics import Counters
from flexkv_core.plan import Status, StoredBlocks, StoredKey, TierReport, TransferResult

KEY = sha256(b"block").digest()
BLOCK_TOKENS = 64
NUM_TOKENS = 4 * BLOCK_TOKENS
PROMPT = list(range(NUM_TOKENS))


@pytest.fixture
def deployment(tmp_path):
    """An engine of two ranks, with room for 32 blocks in each tier."""
    return VllmDeployment(
        cache=parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}),
        rank=0,
        num_ranks=2,
        num_replicas=1,
        num_engines=1,
        num_nodes=1,
        page_shape=PageShape(num_heads=1, page_tokens=16, token_bytes=64),
        page_order=PLAIN,
        head_size=16,
        element_bytes=2,
        num_layers=2,
        first_layer=0,
        total_heads=2,
        cell_heads=1,
        block_tokens=BLOCK_TOKENS,
        step_tokens=2048,
        draft_blocks=0,
        publishes_events=False,
        engine_id="engine",
    )


@pytest.fixture
def adapters(tmp_path):
    from flexkv_connectors.vllm.adapters import Adapters

    return Adapters(bytes(32), tmp_path / "hub", Judge(0.0, Mounts("")))


@pytest.fixture
def half(deployment, adapters):
    """The scheduler half of that engine."""
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    return SchedulerHalf(deployment, Counters(), adapters)


@pytest.fixture
def ready(half):
    """The same once both ranks have told what they have: nothing."""
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
    half.session.ssd.take_orders(0.0)
    return half


def report_of(rank, recovered):
    """Return the first report of a rank that has found some blocks."""
    from flexkv_connectors.vllm.metadata import VllmReports

    found = TierReport(
        tier="ssd", rank=rank, capacity_blocks=32, recovered=recovered, is_recovered=True
    )
    pool = PoolAddress(1, 1, 1, 1, 32, 64)
    return VllmReports([RankReport(rank=rank, pool=pool, ssd=found)])


def request_of(lora=None, media=(), request_id="request"):
    """Return a request for `PROMPT`, with media of 20 tokens from the tokens `media` on."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    request = Request(
        request_id=request_id,
        prompt_token_ids=PROMPT,
        sampling_params=SamplingParams(max_tokens=8),
        pooling_params=None,
        lora_request=lora,
    )
    request.mm_features = [
        SimpleNamespace(
            mm_position=SimpleNamespace(offset=offset, length=20), identifier=f"picture {offset}"
        )
        for offset in media
    ]
    return request


def compute(half, request, begin=0, end=NUM_TOKENS):
    """Let the engine compute tokens of the prompt in one step; return the plan that saves them."""
    name, pages = request.request_id, list(range(NUM_TOKENS // 16))
    new = SimpleNamespace(req_id=name, block_ids=(pages,), num_computed_tokens=0)
    known = SimpleNamespace(
        req_ids=[name] if begin else [],
        new_block_ids=[None] if begin else [],
        num_computed_tokens=[begin] if begin else [],
        resumed_req_ids=(),
    )
    output = SimpleNamespace(
        scheduled_new_reqs=[] if begin else [new],
        scheduled_cached_reqs=known,
        num_scheduled_tokens={name: end - begin},
        total_num_scheduled_tokens=end - begin,
    )
    orders = half.build_orders(output)
    assert len(orders.saves) <= 1
    return orders.saves[0] if orders.saves else None


def saved(half, plan):
    """Tell that both ranks have executed a plan."""
    from flexkv_connectors.vllm.metadata import VllmReports

    results = [
        TransferResult(
            job_id=plan.job_id,
            rank=rank,
            status=Status.OK,
            num_blocks=plan.num_blocks,
            epoch=plan.epoch,
        )
        for rank in range(2)
    ]
    half.handle_reports(
        VllmReports([RankReport(rank=result.rank, results=[result]) for result in results])
    )


def serve(half, request):
    """Serve a request from its arrival to its end, and keep what it may keep."""
    num_offered = half.match(request, 0)
    if plan := compute(half, request):
        saved(half, plan)
    half.finish(request)
    return num_offered


def num_in_host_memory(half):
    return half.session.manager.num_used_blocks("host")


def demoted(half):
    """Return how many blocks are on their way to SSD."""
    plans = half.session.ssd.take_orders(0.0).plans
    return sum(plan.num_blocks for plan in plans if isinstance(plan.target, StoredBlocks))


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
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    cache = msgspec.structs.replace(deployment.cache, media_ids_are_hashes=True)
    trusting = dataclasses.replace(deployment, cache=cache)
    half = SchedulerHalf(trusting, Counters(), adapters)
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
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


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "adapter", b"weights")


def write_adapter(folder, weights):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def lora(folder, **more):
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(folder), **more)


def know(adapters):
    """Wait until the files of all adapters have been read."""
    while adapters.has_work:
        pass


def introduce(ready, adapters, folder):
    """Let an adapter become known."""
    serve(ready, request_of(lora(folder), request_id="first"))
    know(adapters)
    ready.session.reset()


def test_a_request_whose_adapter_is_not_known_yet_is_saved_from_its_first_block_on_later(
    ready, adapters, folder
):
    digest = adapters._reader.read
    asked = []
    adapters._reader.read = lambda *question: asked.append(question)
    request = request_of(lora(folder))
    assert ready.match(request, 0) == 0
    assert compute(ready, request) is None
    digest(*asked[0])
    know(adapters)
    assert compute(ready, request).num_blocks == 4


def test_a_request_finds_what_another_of_its_adapter_has_saved(ready, adapters, folder):
    introduce(ready, adapters, folder)
    assert serve(ready, request_of(lora(folder))) == 0
    assert serve(ready, request_of(lora(folder), request_id="again")) == NUM_TOKENS


def test_a_request_whose_adapter_changes_before_it_is_computed_is_not_saved(
    ready, adapters, folder
):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    write_adapter(folder, b"WEIGHTS")
    assert compute(ready, request) is None


def test_a_request_whose_adapter_changes_while_it_is_computed_is_saved_no_further(
    ready, adapters, folder
):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    assert compute(ready, request, 0, 128).num_blocks == 2
    write_adapter(folder, b"WEIGHTS")
    assert compute(ready, request, 128, 256) is None


def test_what_was_computed_while_its_adapter_changed_is_not_found(ready, adapters, folder):
    introduce(ready, adapters, folder)
    request = request_of(lora(folder))
    ready.match(request, 0)
    plan = compute(ready, request)
    write_adapter(folder, b"WEIGHTS")
    saved(ready, plan)
    assert num_in_host_memory(ready) == 0
    assert demoted(ready) == 0


def test_an_offer_ends_when_the_adapter_changes(ready, adapters, folder):
    introduce(ready, adapters, folder)
    serve(ready, request_of(lora(folder)))
    request = request_of(lora(folder), request_id="again")
    assert ready.match(request, 0) == NUM_TOKENS
    write_adapter(folder, b"WEIGHTS")
    adapters.look_again()
    assert ready.match(request, 0) == 0
    assert not ready.session.manager._claims


@pytest.mark.parametrize(("num_local_tokens", "num_saved"), [(0, 4), (BLOCK_TOKENS, 0)])
def test_what_vllm_kept_under_the_name_of_an_adapter_is_not_saved_once_that_was_another(
    ready, adapters, folder, num_local_tokens, num_saved
):
    introduce(ready, adapters, folder)
    write_adapter(folder, b"WEIGHTS")
    adapters.begin_load(lora(folder, load_inplace=True))
    adapters.end_load(lora(folder, load_inplace=True))
    know(adapters)
    request = request_of(lora(folder))
    ready.match(request, num_local_tokens)
    plan = compute(ready, request)
    assert (plan.num_blocks if plan else 0) == num_saved


def test_requests_that_have_ended_leave_nothing_of_their_adapter(ready, adapters, folder):
    serve(ready, request_of(lora(folder)))
    assert not adapters._num_requests


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
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    half = SchedulerHalf(
        dataclasses.replace(deployment, publishes_events=True), Counters(), adapters
    )
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
    half.session.ssd.take_orders(0.0)
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
    announced = [event.token_ids for event in half.take_events()]
    assert announced == ([] if media else [PROMPT])


@pytest.mark.parametrize("load_async", [True, False])
def test_loaded_tokens_are_counted_whether_their_step_waits_for_them_or_not(
    deployment, adapters, load_async
):
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    cache = msgspec.structs.replace(deployment.cache, load_async=load_async)
    counters = Counters()
    half = SchedulerHalf(dataclasses.replace(deployment, cache=cache), counters, adapters)
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
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
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    deployment = dataclasses.replace(deployment, draft_blocks=draft_blocks)
    half = SchedulerHalf(deployment, Counters(), adapters)
    for rank in range(2):
        half.handle_reports(report_of(rank, []))
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
