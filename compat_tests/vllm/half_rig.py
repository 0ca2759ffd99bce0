"""The scheduler half of an engine of two ranks, without an engine: requests, steps, adapters."""

from types import SimpleNamespace

from flexkv_connectors.session.deployment import PageShape
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.vllm.cpu_pages import PLAIN
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_core.config import parse_config
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.metrics import Counters
from flexkv_core.plan import Status, StoredBlocks, TierReport, TransferResult

BLOCK_TOKENS, PAGE_TOKENS = 64, 16
NUM_TOKENS = 4 * BLOCK_TOKENS
PROMPT = list(range(NUM_TOKENS))


def deployment_in(directory):
    """Return an engine of two ranks, with room for 32 blocks in each tier."""
    return VllmDeployment(
        cache=parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(directory)}),
        rank=0,
        num_ranks=2,
        num_replicas=1,
        num_engines=1,
        num_nodes=1,
        page_shape=PageShape(num_heads=1, page_tokens=PAGE_TOKENS, token_bytes=64),
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


def half_of(deployment, adapters, counters=None):
    """Return the scheduler half of an engine whose ranks have told nothing yet."""
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

    return SchedulerHalf(deployment, counters or Counters(), adapters)


def ready_half_of(deployment, adapters, counters=None):
    """Return the same once both ranks have told what they have: nothing."""
    half = half_of(deployment, adapters, counters)
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


def request_of(lora=None, media=(), request_id="request", salt=None, params=None):
    """Return a request for `PROMPT`, with media of 20 tokens from the tokens `media` on.

    Args:
        lora: vLLM's adapter.
        media: Positions.
        request_id: Its name.
        salt: Of the cache.
        params: Our options for the request.
    """
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    return Request(
        request_id=request_id,
        prompt_token_ids=PROMPT,
        sampling_params=SamplingParams(max_tokens=8, extra_args={"kv_transfer_params": params}),
        pooling_params=None,
        lora_request=lora,
        cache_salt=salt,
        mm_features=[
            SimpleNamespace(
                mm_position=SimpleNamespace(offset=offset, length=20),
                identifier=f"picture {offset}",
            )
            for offset in media
        ],
        block_hasher=get_request_block_hasher(PAGE_TOKENS, sha256),
    )


def compute(half, request, begin=0, end=NUM_TOKENS):
    """Let the engine compute tokens of the prompt in one step; return the plan that saves them."""
    name, pages = request.request_id, list(range(NUM_TOKENS // PAGE_TOKENS))
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
