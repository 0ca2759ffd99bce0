"""vLLM's real scheduler with FlexKV: what it has, and what a router believes that it has."""

import itertools
from typing import Any

from indexer import Overlap, Router, Worker, make_publisher
from scheduler_harness import SimulatedEngine
from simulated_shape import Shape
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.request import Request

from flexkv_core.block.keys import KeyChain


class RoutedEngine:
    """One engine of which a router knows. vLLM merges its own events with ours and sends them."""

    def __init__(self, router: Router, base: VllmConfig, shape: Shape, model: str = "") -> None:
        self._base, self._shape = base, shape
        self._served: list[list[int]] = []
        self.engine = self._start()
        self.worker = Worker(router, shape.page_tokens, self.publisher, model)

    def restart(self) -> None:
        """Start anew on the same directory; a fleet's registry tells the router of both."""
        self.worker.leave()
        self.close()
        self.engine = self._start()
        self.worker.follow(self.publisher)

    def serve(self, *prompts: list[int], **more: Any) -> None:
        """Serve prompts one after the other, to the end of all that follows from them."""
        for prompt in prompts:
            if prompt not in self._served:
                self._served.append(prompt)
            self.engine.add(prompt, 1, **more)
            self.engine.drain()

    def told(self, prompt: list[int], **identity: str) -> Overlap:
        """Return what the router believes that this engine has of a prompt."""
        return self.worker.overlap(prompt, **identity)

    def has(self, prompt: list[int]) -> Overlap:
        """Return what this engine has, told as routers tell it.

        We announce the pages of a block one by one. So those at its head count for a prompt that
        shares only them with the one that was served, although we would load it as a whole only.
        """
        gpu = self._num_engine_tokens(prompt)
        cpu = max(gpu, self._num_our_tokens(prompt, "host"))
        return Overlap(gpu, cpu, max(cpu, self._num_our_tokens(prompt, "ssd")))

    def close(self) -> None:
        """Shut the engine down, its publisher included."""
        self.engine.close()

    @property
    def connector(self) -> Any:
        """The half of our connector that the scheduler has."""
        return self.engine.scheduler.connector

    @property
    def publisher(self) -> Any:
        """vLLM's own."""
        return self.engine.scheduler.kv_event_publisher

    def _start(self) -> SimulatedEngine:
        engine = SimulatedEngine(self._base, self._shape)
        engine.scheduler.kv_event_publisher = make_publisher()
        engine.drain()  # vLLM's own loop steps before the first request, while we say there is work
        return engine

    def _num_engine_tokens(self, prompt: list[int]) -> int:
        probe = Request(
            request_id="probe",
            prompt_token_ids=[*prompt, 0],
            sampling_params=SamplingParams(),
            pooling_params=None,
            block_hasher=self.engine._hasher,
        )
        blocks, *_ = self.engine.scheduler.kv_cache_manager.get_computed_blocks(probe)
        return len(blocks.get_block_ids()[0]) * self._shape.page_tokens

    def _num_our_tokens(self, prompt: list[int], tier: str) -> int:
        manager = self.connector._scheduler.session.manager
        if tier not in manager._tiers:
            return 0
        return max(
            min(self._num_ready_tokens(served, tier), self._num_shared_tokens(served, prompt))
            for served in self._served
        )

    def _num_ready_tokens(self, prompt: list[int], tier: str) -> int:
        chain = KeyChain(self._shape.block_tokens, None)
        chain.advance(prompt)
        ready = self.connector._scheduler.session.manager.lookup(chain.keys, tier=tier)
        return ready.num_ready * self._shape.block_tokens

    def _num_shared_tokens(self, prompt: list[int], other: list[int]) -> int:
        """Return how many leading tokens two prompts share, in whole pages."""
        pairs = zip(prompt, other, strict=False)
        num_tokens = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return num_tokens - num_tokens % self._shape.page_tokens
