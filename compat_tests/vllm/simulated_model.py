"""A stand-in for the forward pass that notices every wrong byte.

It writes into the page of each token a value that depends on all tokens before it, different for
every layer, head and plane, after checking that all pages before hold what they should. So wrong
KV is found in the step that would have used it, and the tokens sampled depend on everything.
"""

import pickle
import time
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, create_kv_cache_views
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

from flexkv_core.identity import origin

PAGE_TOKENS = 4
DISK_S = 30.0
origin.engine_start_s = time.time  # an engine here starts when it is made, and not with its process
Finalize = Literal["step", "late", "never"]
"""When a model runner calls `wait_for_save`: in the step, after it has reported (behind a draft
model's forward pass), or not at all (V1 runner, pipeline stages and speculation)."""


class WrongBytes(AssertionError):
    """A page did not hold the KV of the tokens it stands for."""


class SimulatedRank:
    """One rank: its KV tensors and its half of the connector."""

    def __init__(self, config: VllmConfig, kv_cache_config: KVCacheConfig, shard: int) -> None:
        (tensor,) = kv_cache_config.kv_cache_tensors
        (group,) = kv_cache_config.kv_cache_groups
        views = create_kv_cache_views(
            torch.full((tensor.size,), 0x41, dtype=torch.int8),
            group.kv_cache_spec,
            kv_cache_config.num_blocks,
            KVCacheLayout[kv_cache_config.kv_cache_layout],
            tensor,
        )
        self._values = [view.numpy().view(np.int64) for view in views]
        self._masks = [
            _masks(f"{name} {shard}", values.shape[1], values.shape[3])
            for name, values in zip(tensor.layers, self._values, strict=True)
        ]
        self.page_tokens = group.kv_cache_spec.block_size
        self._is_alone = config.parallel_config.world_size == 1
        self.connector = KVConnectorFactory.create_connector(
            config, KVConnectorRole.WORKER, kv_cache_config
        )
        self.connector.register_kv_caches(dict(zip(tensor.layers, views, strict=True)))

    def begin(self, metadata: Any) -> None:
        """Hand the step's metadata over, as the engine's own message does between processes."""
        if not self._is_alone:
            metadata = pickle.loads(pickle.dumps(metadata))
        self.connector.handle_preemptions(metadata)
        self.connector.bind_connector_metadata(metadata)

    def read(self, pages: np.ndarray, num_tokens: int) -> np.ndarray:
        """Return the values of the first `num_tokens` tokens, `[layers, tokens, H * C]`."""
        found = []
        for values, masks in zip(self._values, self._masks, strict=True):
            taken = values[pages] ^ masks  # [P, H, N, C]
            found.append(taken.transpose(0, 2, 1, 3).reshape(-1, masks.size)[:num_tokens])
        return np.stack(found)

    def write(self, page: int, offset: int, value: int) -> None:
        """Write one token's value into all layers and heads."""
        for values, masks in zip(self._values, self._masks, strict=True):
            values[page, :, offset] = value ^ masks[:, 0]

    def lose_pages(self) -> None:
        """Let no page hold what it held."""
        for values in self._values:
            values.fill(0)

    def wait_for_files(self) -> None:
        """Let what is read and written on disk end, if there is an SSD tier."""
        half = getattr(self.connector, "_worker", None)  # none where FlexKV does not serve
        if half is None or half.session.ssd is None:
            return
        half.session.ssd._identification.join()
        half.session.ssd._tier.wait_recovered()
        for route, lane in half.session.worker._by_route.items():
            assert "ssd" not in route or lane.drain(DISK_S), "the disk is stuck"

    def results(self, finished: set[str]) -> ModelRunnerOutput:
        """Collect what the connector reports at the end of a step."""
        connector = self.connector
        transfers = connector.get_transfer_results(finished)
        output = KVConnectorOutput(
            finished_sending=transfers.finished_sending,
            finished_recving=transfers.finished_recving,
            failed_recving=transfers.failed_recving,
            invalid_block_ids=connector.get_block_ids_with_load_errors(),
            kv_connector_stats=connector.get_kv_connector_stats(),
            kv_connector_worker_meta=connector.build_connector_worker_meta(),
        )
        return ModelRunnerOutput([], {}, kv_connector_output=output)


def _masks(name: str, heads: int, width: int) -> np.ndarray:
    """Return what tells this layer, shard, head and plane from every other: `[H, 1, C]`."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(1, 1 << 62, size=(heads, 1, width), dtype=np.int64)


class _Sequence:
    """What the simulated model runner knows of a request."""

    def __init__(self, new: Any, salt: str) -> None:
        self.tokens = list(new.prefill_token_ids or new.prompt_token_ids)
        self.num_prompt_tokens = len(new.prompt_token_ids)
        self.num_computed = new.num_computed_tokens
        self.pages = list(new.block_ids[0])
        self.chain = Chain(salt)


class _Doubt(NamedTuple):
    """A wrong page that a forward pass has read."""

    request_id: str
    rank: int
    token: int
    page: int


class Chain:
    """The values of a sequence's tokens, computed as far as they were asked for."""

    def __init__(self, salt: str) -> None:
        self._seed = sum(ord(letter) << (5 * i % 40) for i, letter in enumerate(salt)) + 1
        self._values: list[int] = []
        self._tokens: list[int] = []

    def values(self, tokens: list[int]) -> list[int]:
        """Return the value of each token."""
        if self._tokens != tokens[: len(self._tokens)]:
            self._values, self._tokens = [], []
        for token in tokens[len(self._tokens) :]:
            last = self._values[-1] if self._values else self._seed
            value = (last * 6364136223846793005 + token * 1442695040888963407 + 1) % (1 << 62)
            self._values.append(value)
            self._tokens.append(token)
        return self._values[: len(tokens)]


def sample(value: int) -> int:
    """Return the token that follows a token of this value."""
    return (value >> 20) % 50


def expected_output(prompt: list[int], salt: str, num_tokens: int) -> list[int]:
    """Return what a request must generate, whatever was cached."""
    tokens, chain = list(prompt), Chain(salt)
    for _ in range(num_tokens):
        tokens.append(sample(chain.values(tokens)[-1]))
    return tokens[len(prompt) :]


class SimulatedModel:
    """The model runners of all ranks, in lockstep."""

    def __init__(
        self, ranks: list[SimulatedRank], salts: dict[str, str], finalize: Finalize
    ) -> None:
        self._ranks = ranks
        self._page_tokens = ranks[0].page_tokens
        self._finalize = finalize
        self._salts = salts
        self._sequences: dict[str, _Sequence] = {}
        self._doubts: list[_Doubt] = []
        self._aggregator = KVOutputAggregator.from_connector(ranks[0].connector, len(ranks))

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """Run one batch, calling the connector's hooks where vLLM's model runner calls them."""
        for rank in self._ranks:
            rank.begin(output.kv_connector_metadata)
        self._update(output)
        if output.has_sync_kv_loads:
            self._start_loads()
        self._doubts = []
        sampled = [self._forward(*item) for item in output.num_scheduled_tokens.items()]
        if not output.has_sync_kv_loads:
            self._start_loads()
        if self._finalize == "step":
            self._wait_for_saves()
        results = [rank.results(output.finished_req_ids) for rank in self._ranks]
        if self._finalize == "late":
            self._wait_for_saves()
        if self._finalize != "never":
            self._clear_metadata()
        result = self._aggregator.aggregate(results)
        self._settle_doubts(result.kv_connector_output.invalid_block_ids)
        ids = list(output.num_scheduled_tokens)
        result.req_ids, result.req_id_to_index = ids, {name: i for i, name in enumerate(ids)}
        result.sampled_token_ids = sampled
        return result

    def _wait_for_saves(self) -> None:
        for rank in self._ranks:
            rank.connector.wait_for_save()

    def _clear_metadata(self) -> None:
        for rank in self._ranks:
            rank.connector.clear_connector_metadata()

    def _start_loads(self) -> None:
        for rank in self._ranks:
            rank.connector.start_load_kv(None)

    def _update(self, output: SchedulerOutput) -> None:
        for request_id in output.finished_req_ids:
            self._sequences.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            self._sequences[new.req_id] = _Sequence(new, self._salts[new.req_id])
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            sequence, pages = self._sequences[request_id], cached.new_block_ids[i]
            sequence.num_computed = cached.num_computed_tokens[i]
            if request_id in cached.resumed_req_ids:
                sequence.tokens = list(cached.all_token_ids[request_id])
                sequence.pages = []
            sequence.pages += pages[0] if pages else []
            # After a synchronous load has failed, the token sampled from it is taken back.
            del sequence.tokens[sequence.num_prompt_tokens + cached.num_output_tokens[i] :]

    def _forward(self, request_id: str, num_tokens: int) -> list[int]:
        """Compute a request's next `num_tokens` tokens; returns the token it samples, if any."""
        sequence = self._sequences[request_id]
        start, end = sequence.num_computed, sequence.num_computed + num_tokens
        assert end <= len(sequence.tokens), "the scheduler is ahead of the sampled tokens"
        values = sequence.chain.values(sequence.tokens[:end])
        if not self._context_is_right(request_id, sequence, values[:start]):
            values = [value ^ 1 for value in values]
        for position in range(start, end):
            page = sequence.pages[position // self._page_tokens]
            assert page != 0, "the null page must not be written"
            for rank in self._ranks:
                rank.write(page, position % self._page_tokens, values[position])
        if end < len(sequence.tokens):
            return []
        sequence.tokens.append(sample(values[-1]))
        return [sequence.tokens[-1]]

    def _context_is_right(self, request_id: str, sequence: _Sequence, values: list[int]) -> bool:
        """Compare all pages before the tokens being computed, on every rank."""
        num_pages = -(-len(values) // self._page_tokens)
        pages = np.array(sequence.pages[:num_pages], dtype=np.int64)
        expected = np.array(values, dtype=np.int64)[None, :, None]
        for index, rank in enumerate(self._ranks):
            wrong = (rank.read(pages, len(values)) != expected).any(axis=(0, 2))
            if wrong.any():
                first = int(wrong.argmax())
                page = sequence.pages[first // self._page_tokens]
                self._doubts.append(_Doubt(request_id, index, first, page))
                return False
        return True

    def _settle_doubts(self, failed_pages: set[int]) -> None:
        """Raise unless the connector has said that these pages were not loaded."""
        for doubt in self._doubts:
            if doubt.page not in failed_pages:
                raise WrongBytes(f"a wrong page was used and nobody said so: {doubt}")
