"""What a step of decoding costs a scheduler, ours beside vLLM's own offloading connector.

    python -m benchmarks.vllm_step [--rounds N] [--json FILE] [--work FOLDER]

Both connectors get the same `SchedulerOutput` objects of one real vLLM scheduler, in turns; the
model, the workers and the copies are left out. Every request decodes one token a step.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override
from vllm import EngineArgs, SamplingParams
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from benchmarks import rows
from benchmarks.rows import Row
from demo.model import build_model
from flexkv_connectors.session.orders import RankReport
from flexkv_connectors.vllm.connector import FlexKVConnector
from flexkv_connectors.vllm.metadata import VllmOrders, VllmReports
from flexkv_core.data.tiers.host import PoolAddress
from flexkv_core.plan import Status, TierReport, TransferResult

RUNNING = (1, 32, 256, 1024)
BLOCK_TOKENS = 16
PROMPT_TOKENS = 4 * BLOCK_TOKENS
MAX_TOKENS = 8192
NUM_PAGES = 1 << 17
HOST_BYTES = 64 << 30


class Contender(ABC):
    """A connector's half in the scheduler, and workers that finish each save in its step."""

    name: str
    kind: type[KVConnectorBase_V1]

    def __init__(self, config: VllmConfig, kv_cache: KVCacheConfig, folder: Path) -> None:
        config = copy.copy(config)
        config.kv_transfer_config = KVTransferConfig(
            kv_connector=self.kind.__name__,
            kv_role="kv_both",
            kv_connector_extra_config=self.options_in(folder),
        )
        self._connector = self.kind(config, KVConnectorRole.SCHEDULER, kv_cache)
        self._tell(self.first_report())

    @abstractmethod
    def options_in(self, folder: Path) -> dict[str, Any]:
        """Return the connector's options; `folder` is for its files."""

    def first_report(self) -> KVConnectorWorkerMetadata | None:
        """Return what the workers tell before the first step."""
        return None

    @abstractmethod
    def report(self, orders: KVConnectorMetadata) -> KVConnectorWorkerMetadata | None:
        """Return what the workers tell once `orders` are carried out; None if there are none."""

    def arrive(self, request: Request) -> None:
        """Ask about a new request as vLLM's scheduler does."""
        self._connector.on_new_request(request)
        assert self._connector.get_num_new_matched_tokens(request, 0)[0] == 0

    def begin(self, request: Request, blocks: KVCacheBlocks) -> None:
        """Tell of the pages that a new request has got."""
        self._connector.update_state_after_alloc(request, blocks, 0)

    def step(self, output: SchedulerOutput) -> tuple[float, bool]:
        """Return the seconds in hooks of one step, and whether it saved anything."""
        begin_s = time.perf_counter()
        orders = self._connector.build_connector_meta(output)
        built_s = time.perf_counter() - begin_s
        report = self.report(orders)
        begin_s = time.perf_counter()
        self._tell(report)
        self._connector.get_kv_connector_stats()
        self._connector.take_events()
        self._connector.has_pending_push_work()
        return built_s + time.perf_counter() - begin_s, report is not None

    def _tell(self, report: KVConnectorWorkerMetadata | None) -> None:
        output = KVConnectorOutput(kv_connector_worker_meta=report)
        self._connector.update_connector_output(output)


class FlexKV(Contender):
    """Ours."""

    name = "FlexKV"
    kind = FlexKVConnector

    @override
    def options_in(self, folder: Path) -> dict[str, Any]:
        return {"cpu_cache_gb": 1.0, "block_tokens": BLOCK_TOKENS}

    @override
    def first_report(self) -> VllmReports:
        return VllmReports([RankReport(rank=0, pool=PoolAddress(1, 1, 1, 1, NUM_PAGES, 64))])

    @override
    def report(self, orders: KVConnectorMetadata) -> VllmReports | None:
        assert isinstance(orders, VllmOrders)
        moves = orders.ssd.plans if orders.ssd else []
        results = [
            TransferResult(
                job_id=plan.job_id,
                rank=0,
                status=Status.OK,
                num_blocks=plan.num_blocks,
                epoch=plan.epoch,
            )
            for plan in [*orders.late_saves, *orders.saves, *moves]
        ]
        return VllmReports([RankReport(rank=0, results=results)]) if results else None


class FlexKVWithSsd(FlexKV):
    """Ours with a tier below host memory, which takes what it is given at once."""

    name = "FlexKV, SSD"

    @override
    def options_in(self, folder: Path) -> dict[str, Any]:
        ssd = {"ssd_cache_gb": 1.0, "ssd_cache_dir": str(folder)}
        return super().options_in(folder) | ssd

    @override
    def first_report(self) -> VllmReports:
        ssd = TierReport(tier="ssd", rank=0, capacity_blocks=NUM_PAGES, is_recovered=True)
        pool = PoolAddress(1, 1, 1, 1, NUM_PAGES, 64)
        return VllmReports([RankReport(rank=0, pool=pool, ssd=ssd)])


class Offloading(Contender):
    """vLLM's own."""

    name = "OffloadingConnector"
    kind = OffloadingConnector

    @override
    def options_in(self, folder: Path) -> dict[str, Any]:
        return {"cpu_bytes_to_use": HOST_BYTES}

    @override
    def report(self, orders: KVConnectorMetadata) -> OffloadingWorkerMetadata | None:
        assert isinstance(orders, OffloadingConnectorMetadata)
        if not orders.store_jobs:
            return None
        return OffloadingWorkerMetadata(completed_jobs=dict.fromkeys(orders.store_jobs, 1))


class Engine:
    """vLLM's scheduler with requests that decode, and nothing that computes."""

    def __init__(self, config: VllmConfig, kv_cache: KVCacheConfig) -> None:
        hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, hash_function)
        self._scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=kv_cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
        )

    def begin(self, prompts: list[list[int]], contenders: list[Contender]) -> None:
        """Compute `prompts`, each in one step with all others."""
        requests = [self._request(number, prompt) for number, prompt in enumerate(prompts)]
        for request in requests:
            self._scheduler.add_request(request)
            for contender in contenders:
                contender.arrive(request)
        output = self._scheduler.schedule()
        assert len(output.scheduled_new_reqs) == len(prompts)
        for request, contender in itertools.product(requests, contenders):
            blocks = self._scheduler.kv_cache_manager.get_blocks(request.request_id)
            contender.begin(request, blocks)
        self.end_step(output, contenders)

    def end_step(
        self, output: SchedulerOutput, contenders: list[Contender]
    ) -> dict[str, tuple[float, bool]]:
        """Show a step to the contenders, and go on as if it had been computed."""
        taken = {contender.name: contender.step(output) for contender in contenders}
        names = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[[7]] * len(names),
        )
        self._scheduler.update_from_output(output, result)
        return taken

    def decode(self, contenders: list[Contender]) -> dict[str, tuple[float, bool]]:
        """Decode one token of every request."""
        return self.end_step(self._scheduler.schedule(), contenders)

    def close(self) -> None:
        """Shut vLLM's scheduler down."""
        self._scheduler.shutdown()

    def _request(self, number: int, prompt: list[int]) -> Request:
        return Request(
            request_id=f"request-{number}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True),
            pooling_params=None,
            block_hasher=self._hasher,
        )


def engine_config(model: Path, num_requests: int) -> VllmConfig:
    """Return a configuration that computes all prompts in the first step."""
    config = EngineArgs(
        model=str(model),
        max_model_len=MAX_TOKENS,
        max_num_seqs=num_requests,
        max_num_batched_tokens=max(MAX_TOKENS, num_requests * (PROMPT_TOKENS + BLOCK_TOKENS)),
        block_size=BLOCK_TOKENS,
        enable_prefix_caching=True,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = NUM_PAGES
    config.scheduler_config.async_scheduling = False
    return config


def kv_cache_config() -> KVCacheConfig:
    """Return one group of two small layers; the size of a page costs a scheduler nothing."""
    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=4, head_size=64, dtype=torch.bfloat16
    )
    names = [f"model.layers.{layer}.self_attn.attn" for layer in range(2)]
    tensor = KVCacheTensor(
        size=spec.page_size_bytes * NUM_PAGES * len(names),
        layers=names,
        layer_stride=spec.page_size_bytes * NUM_PAGES,
        block_stride=spec.page_size_bytes,
    )
    return KVCacheConfig(
        num_blocks=NUM_PAGES,
        kv_cache_tensors=[tensor],
        kv_cache_groups=[KVCacheGroupSpec(names, spec)],
        kv_cache_layout="LBNHC",
        hash_block_size=BLOCK_TOKENS,
    )


def prompts(num_requests: int, *, in_turn: bool) -> list[list[int]]:
    """Return prompts that share nothing; blocks fill all at once, or `in_turn`."""
    return [
        [number % 251, number // 251, *[5] * (PROMPT_TOKENS - 2 + in_turn * number % BLOCK_TOKENS)]
        for number in range(num_requests)
    ]


def measure(
    model: Path, folder: Path, num_requests: int, rounds: int, *, in_turn: bool
) -> Iterator[Row]:
    """Yield a row for each contender: its median step, over rounds of a step for each block token.

    Either blocks fill `in_turn`, some in each step, or only steps count in which none fills.
    """
    config, kv_cache = engine_config(model, num_requests), kv_cache_config()
    engine = Engine(config, kv_cache)
    contenders = [kind(config, kv_cache, folder) for kind in (FlexKV, FlexKVWithSsd, Offloading)]
    engine.begin(prompts(num_requests, in_turn=in_turn), contenders)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        steps = [engine.decode(contenders[:: (-1) ** turn]) for turn in range(BLOCK_TOKENS)]
        if not in_turn:
            steps = [step for step in steps if not any(saves for _, saves in step.values())]
        for name, samples in times.items():
            samples.append(1e6 * statistics.median(step[name][0] for step in steps))
    engine.close()
    theirs = times[Offloading.name][1:]
    for name, samples in times.items():
        ratios = [ours / other for ours, other in zip(samples[1:], theirs, strict=True)]
        yield {
            "benchmark": "vllm_step",
            "blocks_fill": f"of 1 in {BLOCK_TOKENS}" if in_turn else "of none",
            "connector": name,
            "running_requests": num_requests,
            **rows.spread("us_per_step", samples[1:]),
            **rows.spread("ratio", ratios),
        }


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="the first one does not count")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="for scratch files")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    vllm = version(packages_distributions()["vllm"][0])
    around = rows.circumstances() | {"vllm": vllm, "rounds": arguments.rounds}
    work = arguments.work.resolve()
    model = build_model(work, "demo")
    with tempfile.TemporaryDirectory(prefix="step-", dir=work) as name:
        measured = [
            row | around
            for in_turn, num_requests in itertools.product((False, True), RUNNING)
            for row in measure(model, Path(name), num_requests, arguments.rounds, in_turn=in_turn)
        ]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
