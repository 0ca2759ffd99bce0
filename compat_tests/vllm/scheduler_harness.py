"""vLLM's real scheduler around a simulated model, in one process, with every order of events.

What is real: `Scheduler` or `AsyncScheduler`, its block pool, the connector's both halves, the KV
tensors as vLLM lays them out, and the aggregation over ranks. What is simulated is the forward
pass, see `simulated_model`. Batches are scheduled, executed and delivered as three separate
events, as many in flight as vLLM allows; `test_scheduler_contract` shuffles them.
"""

import copy
import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from environment import choose_model_runner, restored_environment
from router_view import RouterView
from simulated_model import (
    PAGE_TOKENS,
    Finalize,
    SimulatedModel,
    SimulatedRank,
    expected_output,
)
from vllm import EngineArgs, SamplingParams
from vllm.config import KVEventsConfig, KVTransferConfig, VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MLAAttentionSpec,
)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

LAYERS_PER_STAGE = 2
MAX_STEPS = 3000


class Shape(NamedTuple):
    """One engine configuration."""

    async_scheduling: bool = False
    v2_runner: bool = False
    finalize: Finalize = "step"
    num_stages: int = 1
    tensor_parallel: int = 1
    mla: bool = False
    layout: str = "LBNHC"
    num_pages: int = 64
    max_batched_tokens: int = 24
    max_requests: int = 4
    recompute: bool = True
    load_async: bool = True
    block_tokens: int = 2 * PAGE_TOKENS
    cpu_cache_gb: float = 1e-4
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def num_ranks(self) -> int:
        return self.num_stages * self.tensor_parallel


def base_config(model: Path, connector: dict[str, Any]) -> VllmConfig:
    """Read a model's configuration once; `SimulatedEngine` adapts copies of it."""
    with restored_environment():
        return EngineArgs(
            model=str(model),
            dtype="float32",
            max_model_len=512,
            block_size=PAGE_TOKENS,
            enable_prefix_caching=True,
            kv_transfer_config=KVTransferConfig(kv_role="kv_both", **connector),
        ).create_engine_config()


def _config_for(base: VllmConfig, shape: Shape, rank: int) -> VllmConfig:
    config = copy.copy(base)
    for name in ("scheduler_config", "parallel_config", "cache_config", "kv_transfer_config"):
        setattr(config, name, copy.copy(getattr(base, name)))
    config.scheduler_config.async_scheduling = shape.async_scheduling
    config.scheduler_config.max_num_batched_tokens = shape.max_batched_tokens
    config.scheduler_config.max_num_seqs = shape.max_requests
    config.scheduler_config.enable_chunked_prefill = True
    config.parallel_config.tensor_parallel_size = shape.tensor_parallel
    config.parallel_config.pipeline_parallel_size = shape.num_stages
    config.parallel_config.world_size = shape.num_ranks
    config.parallel_config.rank = rank
    config.cache_config.block_size = PAGE_TOKENS
    config.cache_config.enable_prefix_caching = True
    config.cache_config.num_gpu_blocks = shape.num_pages
    config.kv_events_config = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    transfer = config.kv_transfer_config
    transfer.kv_load_failure_policy = "recompute" if shape.recompute else "fail"
    transfer.kv_connector_extra_config = {
        "load_async": shape.load_async,
        "block_tokens": shape.block_tokens,
        "cpu_cache_gb": shape.cpu_cache_gb,
        **shape.options,
    }
    return config


def _kv_cache_config(shape: Shape, stage: int) -> KVCacheConfig:
    kind = MLAAttentionSpec if shape.mla else FullAttentionSpec
    heads = 1 if shape.mla else 2
    spec = kind(block_size=PAGE_TOKENS, num_kv_heads=heads, head_size=2, dtype=torch.float32)
    first = stage * LAYERS_PER_STAGE
    names = [f"model.layers.{first + i}.self_attn.attn" for i in range(LAYERS_PER_STAGE)]
    page_bytes, layout = spec.page_size_bytes, KVCacheLayout[shape.layout]
    outermost = layout.is_block_outermost
    tensor = KVCacheTensor(
        size=page_bytes * shape.num_pages * LAYERS_PER_STAGE,
        layers=names,
        layer_stride=page_bytes if outermost else page_bytes * shape.num_pages,
        block_stride=page_bytes * LAYERS_PER_STAGE if outermost else page_bytes,
    )
    values = {
        "num_blocks": shape.num_pages,
        "kv_cache_tensors": [tensor],
        "kv_cache_groups": [KVCacheGroupSpec(names, spec)],
        "kv_cache_layout": shape.layout,
        "hash_block_size": PAGE_TOKENS,
        "kv_tp_replicas": shape.tensor_parallel if shape.mla else 1,
    }
    # Some versions have no fields for the last ones.
    known = {field.name for field in dataclasses.fields(KVCacheConfig)}
    return KVCacheConfig(**{name: value for name, value in values.items() if name in known})


def ready_keys(manager: Any, tier: str) -> set[bytes]:
    """Return the keys that can be found in `tier`, if there is such a tier."""
    state = manager._tiers.get(tier)
    keys: set[bytes] = set()
    nodes = [] if state is None else [manager._index.root]
    for node in nodes:
        nodes += node.children.values()
        if entry := node.entries[state.index]:
            keys.update(node.keys[: entry.num_ready])
    return keys


class _Batch:
    """One scheduled batch on its way through the engine."""

    def __init__(self, scheduled: SchedulerOutput) -> None:
        self.scheduled = scheduled
        self.result: ModelRunnerOutput | None = None


class Ending(NamedTuple):
    """What a client has got of a request."""

    tokens: list[int]
    reason: str | None


class SimulatedEngine:
    """The scheduler, the ranks, and the batches between them."""

    def __init__(self, base: VllmConfig, shape: Shape) -> None:
        choose_model_runner(v2=shape.v2_runner)
        config = _config_for(base, shape, 0)
        kind = AsyncScheduler if shape.async_scheduling else Scheduler
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=_kv_cache_config(shape, 0),
            structured_output_manager=StructuredOutputManager(config),
            block_size=PAGE_TOKENS,
            hash_block_size=PAGE_TOKENS,
            log_stats=True,
        )
        self.router = self.scheduler.kv_event_publisher = RouterView()
        self.num_loads = 0
        self.num_loads_ended = 0
        self.events: Counter[str] = Counter()
        self._shape = shape
        self._salts: dict[str, str] = {}
        self._generation = 0
        ranks = [
            SimulatedRank(
                _config_for(base, shape, rank),
                _kv_cache_config(shape, rank // shape.tensor_parallel),
                shard=0 if shape.mla else rank % shape.tensor_parallel,
            )
            for rank in range(shape.num_ranks)
        ]
        self._ranks = ranks
        self._model = SimulatedModel(ranks, self._salts, shape.finalize)
        self._batches: deque[_Batch] = deque()
        self.capacity = config.max_concurrent_batches
        self._asked: dict[str, tuple[list[int], int]] = {}
        self._got: dict[str, list[int]] = {}
        self.endings: dict[str, Ending] = {}
        hash_fn = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_fn)
        self._hasher = get_request_block_hasher(PAGE_TOKENS, hash_fn)
        self._count_loads()

    def add(self, prompt: list[int], max_tokens: int, salt: str = "", **params: Any) -> str:
        """Queue a request."""
        request_id = f"r{len(self._asked)}"
        extra = {"kv_transfer_params": params} if params else None
        request = Request(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            sampling_params=SamplingParams(
                max_tokens=max_tokens, ignore_eos=True, extra_args=extra
            ),
            pooling_params=None,
            cache_salt=salt or None,
            block_hasher=self._hasher,
        )
        self._asked[request_id] = (list(prompt), max_tokens)
        self._salts[request_id] = f"{salt}/{self._generation}"
        self._got[request_id] = []
        self.scheduler.add_request(request)
        return request_id

    def abort(self, request_id: str) -> None:
        """Abort a request, whatever its state."""
        self.events[f"aborts while {self.scheduler.requests[request_id].status.name}"] += 1
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        if request_id not in self.endings:
            self.endings[request_id] = Ending(self._got[request_id], "abort")

    @property
    def active(self) -> list[str]:
        """Requests that have not ended."""
        return [name for name in self._asked if name not in self.endings]

    @property
    def loading(self) -> list[str]:
        """Requests that wait for a load."""
        requests = self.scheduler.requests
        return [
            name
            for name in self.active
            if requests[name].status is RequestStatus.WAITING_FOR_REMOTE_KVS
        ]

    def schedule(self) -> bool:
        """Schedule a batch if vLLM would; returns whether it did."""
        if len(self._batches) >= self.capacity or not self.scheduler.has_requests():
            return False
        self._batches.append(_Batch(self.scheduler.schedule()))
        self.events["batches in flight"] += len(self._batches) > 1
        self.events["late saves"] += len(
            self._batches[-1].scheduled.kv_connector_metadata.late_saves
        )
        return True

    def execute(self) -> bool:
        """Run the oldest batch that has not run."""
        for batch in self._batches:
            if batch.result is None:
                batch.result = self._model.execute(batch.scheduled)
                return True
        return False

    def deliver(self) -> bool:
        """Give the oldest batch's output to the scheduler, running it first if need be."""
        if not self._batches:
            return False
        if self._batches[0].result is None:
            self.execute()
        batch = self._batches.popleft()
        transfers = batch.result.kv_connector_output
        self.num_loads_ended += len(transfers.finished_recving or ())
        outputs = self.scheduler.update_from_output(batch.scheduled, batch.result)
        for output in outputs[0].outputs if 0 in outputs else ():
            self._receive(output)
        return True

    def drain(self) -> None:
        """Go on until the engine would stop stepping."""
        self._go_on_until(lambda: not (self._batches or self.scheduler.has_requests()))

    def finish_requests(self) -> None:
        """Go on until the last request has ended; what was to be saved may still be under way."""
        self._go_on_until(lambda: self.is_quiet)

    def _go_on_until(self, done: Callable[[], bool]) -> None:
        for _ in range(MAX_STEPS):
            if done():
                return
            if self.schedule() and not self._batches[-1].scheduled.total_num_scheduled_tokens:
                self._wait_for_files()
            self.deliver()
        raise AssertionError(f"the engine never became idle: {self.active}")

    def _wait_for_files(self) -> None:
        """Nothing is left to compute: steps take no time here, and disks do."""
        for rank in self._ranks:
            rank.wait_for_files()

    def reset(self, *, running: bool, connector: bool) -> bool:
        """Reset the prefix cache."""
        self.events[f"resets {running=} {connector=}"] += 1
        return self.scheduler.reset_prefix_cache(
            reset_running_requests=running, reset_connector=connector
        )

    def sleep(self) -> None:
        """Reset everything and lose the pages, as a vLLM does that falls asleep and wakes up."""
        assert self.can_reset_running
        assert self.reset(running=True, connector=True)
        for rank in self._ranks:
            rank.lose_pages()

    def change_weights(self) -> None:
        """Reset everything; from now on the same tokens have other KV. Only without requests."""
        assert not self._batches
        assert not self.scheduler.requests
        assert self.reset(running=False, connector=True)
        self._generation += 1
        self.events["weight changes"] += 1

    @property
    def is_quiet(self) -> bool:
        """Whether no batch is in flight and no request holds a page."""
        return not self._batches and not self.scheduler.requests

    @property
    def can_reset_running(self) -> bool:
        """Whether vLLM allows a reset that preempts: nobody but running requests holds a page."""
        statuses = {request.status for request in self.scheduler.requests.values()}
        holders = self._batches or self.scheduler.kv_holding_waiting
        return not holders and statuses <= {RequestStatus.WAITING, RequestStatus.RUNNING}

    def check_idle(self) -> None:
        """Assert what must hold when nothing is left to do."""
        pool = self.scheduler.kv_cache_manager.block_pool
        assert not self.active, self.active
        assert not self.scheduler.requests
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "pages leaked"
        assert self.num_loads == self.num_loads_ended, "loads without exactly one completion"
        self._check_connector()
        for request_id, ending in self.endings.items():
            prompt, max_tokens = self._asked[request_id]
            expected = expected_output(prompt, self._salts[request_id], max_tokens)
            if ending.reason == "length":
                assert ending.tokens == expected, request_id
            else:
                assert ending.tokens == expected[: len(ending.tokens)], request_id

    def _check_connector(self) -> None:
        connector = self.scheduler.connector
        for half in (connector, *(rank.connector for rank in self._ranks)):
            assert not half._barrier.reason, half._barrier.reason
        manager = connector._scheduler.session.manager
        manager.check_integrity()
        assert not manager.num_in_flight
        assert not manager._claims, "leases or reservations were forgotten"
        assert not connector._scheduler.session.states, "requests were forgotten"
        self._check_router(connector._scheduler._announcer, manager)

    def _check_router(self, announcer: Any, manager: Any) -> None:
        """Routers know what the tiers have; after a reset of vLLM's that cleared it, no more."""
        for tier, medium in {"host": "CPU", "ssd": "STORAGE"}.items():
            announced = announcer._tiers[tier].blocks
            names = {name for pages in announced.values() for name in pages.names}
            assert self.router.media[medium] == names
            ready = ready_keys(manager, tier)
            assert announced.keys() <= ready
            assert self.router.num_clears or announced.keys() == ready

    def close(self) -> None:
        """Shut both halves of the connector down."""
        for rank in self._ranks:
            rank.connector.shutdown()
        self.scheduler.shutdown()

    def _receive(self, output: Any) -> None:
        got = self._got[output.request_id]
        if output.request_id not in self.endings:
            got += output.new_token_ids
        if output.finish_reason is not None:
            ending = Ending(got, str(output.finish_reason))
            self.endings.setdefault(output.request_id, ending)
            self.events[f"ended by {ending.reason}"] += 1

    def _count_loads(self) -> None:
        connector = self.scheduler.connector
        accept = connector.update_state_after_alloc

        def counted(request: Request, blocks: Any, num_external_tokens: int) -> None:
            self.events["external tokens"] += num_external_tokens
            self.num_loads += num_external_tokens > 0 and self._shape.load_async
            self.events["resumed requests"] += request.num_preemptions > 0
            accept(request, blocks, num_external_tokens)

        connector.update_state_after_alloc = counted
