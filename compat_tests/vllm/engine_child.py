"""One real vLLM engine in this process, driven by commands: run by `engine_process.EngineProcess`.

Reads one JSON object a line, {"call": method of `Engine`, "with": arguments}, and answers each
with the result; what is raised ends the process, with its traceback in the log. The engine core
runs in this process and is stepped by hand, so a test decides what has happened when it looks, and
no time does.
"""

import hashlib
import json
import os
import sys
import time
from typing import Any

import msgspec
from prometheus_client import REGISTRY
from vllm import EngineArgs, PoolingParams, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.request import Request

OWN_LABELS = ("engine", "model_name", "engine_index")


class Engine:
    """The commands. Arguments and results are JSON; token ids are lists of int."""

    def __init__(self, **engine_args: Any) -> None:
        self._llm = LLMEngine.from_engine_args(EngineArgs(**engine_args))
        self._core = self._llm.engine_core.engine_core
        self._scheduler = self._core.scheduler
        self._loras: dict[str, int] = {}
        self._internal_ids: dict[str, str] = {}
        self._finished: dict[str, dict[str, Any]] = {}

    def add(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int = 24,
        salt: str | None = None,
        lora: str | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
        prompt_embeds: float | None = None,
        pooling_task: str | None = None,
        of_the_request: dict[str, Any] | None = None,
    ) -> None:
        """Queue a request: greedy and never ended by a token, or one that pools.

        `of_the_request` is set in vLLM's parameters of it, whichever they are.
        """
        others = of_the_request or {}
        params = (
            PoolingParams(task=pooling_task, **others)
            if pooling_task
            else SamplingParams(
                temperature=0,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.CUMULATIVE,
                extra_args={"kv_transfer_params": kv_transfer_params}
                if kv_transfer_params
                else None,
                **others,
            )
        )
        content = self._content(prompt, prompt_embeds) | ({"cache_salt": salt} if salt else {})
        self._internal_ids[request_id] = self._llm.add_request(
            request_id, content, params, lora_request=self._lora(lora)
        )

    def step(self, times: int = 1) -> list[str]:
        """Step the engine; returns the ids of the requests that have finished by now."""
        for _ in range(times):
            self._step()
        return sorted(self._finished)

    def run(self, limit_s: float = 120.0) -> dict[str, dict[str, Any]]:
        """Step until nothing is left to do, saves and reports included; returns what finished."""
        deadline = time.monotonic() + limit_s
        while self._llm.has_unfinished_requests() or self._scheduler.has_requests():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not idle after {limit_s} s: {self.state()}")
            self._step()
        finished, self._finished = self._finished, {}
        return finished

    def abort(self, request_id: str) -> None:
        """Abort a request, as a client that disconnects does."""
        self._llm.abort_request([request_id])

    def state(self) -> dict[str, Any]:
        """Where every request is, and what the block pool holds."""
        pool = self._scheduler.kv_cache_manager.block_pool
        known = self._scheduler.requests
        requests = {name: known[key] for name, key in self._internal_ids.items() if key in known}
        return {
            "requests": {name: request.status.name for name, request in requests.items()},
            "preemptions": {name: request.num_preemptions for name, request in requests.items()},
            "num_free_blocks": pool.get_num_free_blocks(),
            "num_blocks": pool.num_gpu_blocks,
            "busy": self._scheduler.has_requests(),
        }

    def reset_prefix_cache(self, connector: bool = False) -> bool:
        """Drop the engine's own prefix cache, and with `connector` ours as well."""
        return self._llm.reset_prefix_cache(reset_connector=connector)

    def scribble(self, byte: int = 0x41) -> None:
        """Overwrite every page, so that a load that copies nothing finds no old truth there."""
        self._llm.collective_rpc("scribble", args=(byte,))

    def scale_keys(self, factor: float) -> None:
        """Change the weights of every rank in place."""
        self._llm.collective_rpc("scale_keys", args=(factor,))

    def cached_pages(self, prompt: list[int], salt: str | None = None) -> list[str]:
        """Digest, over all ranks, each full page of `prompt` in the engine's own prefix cache."""
        ranks = self._llm.collective_rpc("page_digests", args=(self._page_ids(prompt, salt),))
        return [
            hashlib.sha256("".join(page).encode()).hexdigest() for page in zip(*ranks, strict=True)
        ]

    def remember_pages(self, prompt: list[int]) -> None:
        """Copy the pages that `cached_pages` would digest."""
        self._llm.collective_rpc("remember_pages", args=(self._page_ids(prompt),))

    def page_differences(self, prompt: list[int]) -> list[float]:
        """Return, over all ranks, by how much each page differs from the one remembered."""
        ranks = self._llm.collective_rpc("page_differences", args=(self._page_ids(prompt),))
        return [max(page) for page in zip(*ranks, strict=True)]

    def load_adapter(self, path: str, in_place: bool = False) -> None:
        """Load an adapter ahead of its requests; with `in_place` even if it is loaded."""
        self._llm.add_lora(msgspec.structs.replace(self._lora(path), load_inplace=in_place))

    def remove_adapter(self, path: str) -> None:
        """Take an adapter out of the workers."""
        self._llm.remove_lora(self._loras[path])

    def sleep(self, level: int = 1) -> None:
        """Pause, and from level 1 on drop all caches."""
        self._llm.sleep(level=level)

    def wake_up(self) -> None:
        """Resume after `sleep`."""
        self._llm.wake_up()

    def metrics(self) -> dict[str, float]:
        """Return every Prometheus sample of this process as {name or name{label=value}: value}."""
        samples = (sample for family in REGISTRY.collect() for sample in family.samples)
        return {_sample_name(s): s.value for s in samples if not s.name.endswith("_bucket")}

    def connector(self, method: str, **arguments: Any) -> Any:
        """Call a method of the scheduler's connector."""
        return getattr(self._scheduler.connector, method)(**arguments)

    def worker_connectors(self, method: str, **arguments: Any) -> list[Any]:
        """Call a method of every rank's connector."""
        return self._llm.collective_rpc("call_connector", args=(method,), kwargs=arguments)

    def _page_ids(self, prompt: list[int], salt: str | None = None) -> list[int]:
        request = Request(
            request_id="probe",
            prompt_token_ids=[*prompt, 0],
            sampling_params=SamplingParams(),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=self._core.request_block_hasher,
        )
        blocks, *_ = self._scheduler.kv_cache_manager.get_computed_blocks(request)
        return blocks.get_block_ids()[0]

    def _step(self) -> None:
        for output in self._llm.step():
            if output.finished:
                told = _pooled(output) if hasattr(output.outputs, "data") else _generated(output)
                told["num_cached_tokens"] = output.num_cached_tokens
                self._finished[output.request_id] = told

    def _content(self, prompt: list[int], scale: float | None) -> dict[str, Any]:
        if scale is None:
            return {"prompt_token_ids": prompt}
        import torch

        hidden = self._llm.model_config.get_hidden_size()
        generator = torch.Generator().manual_seed(prompt[0])
        embeds = torch.randn(len(prompt), hidden, generator=generator) * scale
        return {"prompt_embeds": embeds.to(self._llm.model_config.dtype)}

    def _lora(self, path: str | None) -> LoRARequest | None:
        if path is None:
            return None
        number = self._loras.setdefault(path, len(self._loras) + 1)
        return LoRARequest(f"lora-{number}", number, path)


def _generated(output: Any) -> dict[str, Any]:
    completion = output.outputs[0]
    return {
        "tokens": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "prompt_logprobs": [
            next(iter(position.values())).logprob
            for position in output.prompt_logprobs or ()
            if position
        ],
    }


def _pooled(output: Any) -> dict[str, Any]:
    data = output.outputs.data
    return {"tokens": [], "finish_reason": "pooled", "pooled": data.reshape(-1).tolist()}


def _sample_name(sample: Any) -> str:
    labels = ",".join(f"{k}={v}" for k, v in sample.labels.items() if k not in OWN_LABELS)
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def main() -> None:
    """Serve commands until the other side closes the pipe. The first one starts the engine."""
    with os.fdopen(int(sys.argv[1])) as lines, os.fdopen(int(sys.argv[2]), "w") as answers:
        commands = map(json.loads, lines)
        engine = Engine(**next(commands)["with"])
        print("null", file=answers, flush=True)
        for command in commands:
            result = getattr(engine, command["call"])(**command["with"])
            print(json.dumps(result), file=answers, flush=True)
    engine._llm.engine_core.shutdown()


if __name__ == "__main__":
    main()
