"""A real vLLM engine in a process of its own, as an object."""

import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from environment import safe_environment

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from json_child import EngineFailure, JsonChild  # noqa: E402 the line above makes it importable

__all__ = ["Ask", "Completion", "EngineFailure", "EngineProcess", "random_tokens"]
START_LIMIT_S = 300.0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request; see `engine_child.Engine.add`."""

    prompt: list[int]
    max_tokens: int = 24
    salt: str | None = None
    lora: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    prompt_embeds: float | None = None
    pooling_task: str | None = None
    of_the_request: dict[str, Any] | None = None


class Completion(msgspec.Struct, frozen=True):
    """What became of a request."""

    tokens: list[int]
    finish_reason: str
    num_cached_tokens: int
    prompt_logprobs: list[float] = []
    """Of each token of the prompt but the first, where they were asked for."""

    pooled: list[float] = []
    """Rows of a pooling request, one after the other."""


class EngineProcess(JsonChild):
    """One engine with one configuration. Slow to start (10 s and more): share it.

    Args:
        model: Folder of a model of `models.py`.
        folder: Empty folder of this engine alone: working directory and log.
        connector: `kv_transfer_config`, or None for an engine without a connector.
        env: Environment on top of the harness's own.
        engine_args: Everything else `vllm.EngineArgs` takes.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        connector: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        **engine_args: Any,
    ) -> None:
        command = [sys.executable, HERE / "engine_child.py"]
        super().__init__(command, folder, safe_environment() | (env or {}))
        self._num_requests = 0
        if connector is not None:
            engine_args["kv_transfer_config"] = {"kv_role": "kv_both"} | connector
        self._call("start", START_LIMIT_S, **_defaults(model) | engine_args)

    def complete(self, *asks: Ask) -> list[Completion]:
        """Serve requests at the same time; returns when the engine has nothing left to do."""
        ids = [self.add(ask) for ask in asks]
        finished = self.run()
        return [finished[request_id] for request_id in ids]

    def complete_each(self, asks: Iterable[Ask]) -> list[Completion]:
        """Serve requests one after the other."""
        return [self.complete(ask)[0] for ask in asks]

    def add(self, ask: Ask) -> str:
        """Queue a request and return its id; `step` or `run` serves it."""
        self._num_requests += 1
        request_id = f"r{self._num_requests}"
        self._call("add", request_id=request_id, **msgspec.structs.asdict(ask))
        return request_id

    def step(self, times: int = 1) -> list[str]:
        """Step the engine; returns the ids of requests that have finished since the last `run`."""
        return self._call("step", times=times)

    def run(self, limit_s: float = 120.0) -> dict[str, Completion]:
        """Step until nothing is left to do, and return what has finished by request id."""
        return msgspec.convert(
            self._call("run", limit_s + 60, limit_s=limit_s), dict[str, Completion]
        )

    def abort(self, request_id: str) -> None:
        """Abort a request."""
        self._call("abort", request_id=request_id)

    def state(self) -> dict[str, Any]:
        """Return statuses of requests, free and total pages, and whether the engine is busy."""
        return self._call("state")

    def forget(self) -> None:
        """Drop the engine's own prefix cache and overwrite its pages; the connector remembers."""
        assert self._call("reset_prefix_cache"), "pages are still in use"
        self._call("scribble")

    def reset_all(self) -> bool:
        """Reset the engine and the connector, as after new weights; False if pages are in use."""
        return self._call("reset_prefix_cache", connector=True)

    def forget_all(self) -> None:
        """As `forget`, and the connector forgets too."""
        assert self.reset_all(), "the reset was refused"
        self._call("scribble")

    def cached_pages(self, prompt: list[int], salt: str | None = None) -> list[str]:
        """Digest the full pages of `prompt` that the engine's own prefix cache holds."""
        return self._call("cached_pages", prompt=prompt, salt=salt)

    def remember_pages(self, prompt: list[int]) -> None:
        """Copy the pages that `cached_pages` would digest, for `page_differences`."""
        self._call("remember_pages", prompt=prompt)

    def page_differences(self, prompt: list[int]) -> list[float]:
        """Return the largest difference in each full page of `prompt` to the remembered one."""
        return self._call("page_differences", prompt=prompt)

    def load_adapter(self, path: str, *, in_place: bool = False) -> None:
        """Load an adapter, as `/v1/load_lora_adapter` does."""
        self._call("load_adapter", path=path, in_place=in_place)

    def remove_adapter(self, path: str) -> None:
        """Take an adapter out of the workers."""
        self._call("remove_adapter", path=path)

    def sleep(self, level: int = 1) -> None:
        """Put the engine to sleep."""
        self._call("sleep", level=level)

    def wake_up(self) -> None:
        """Wake the engine up."""
        self._call("wake_up")

    def scale_keys(self, factor: float) -> None:
        """Change the weights in place, so that all keys and values are `factor` times as large."""
        self._call("scale_keys", factor=factor)

    def metrics(self) -> dict[str, float]:
        """Return all Prometheus samples by name, with labels where there are any."""
        return self._call("metrics")

    def connector(self, method: str, **arguments: Any) -> Any:
        """Call a method of the scheduler's connector."""
        return self._call("connector", method=method, **arguments)

    def worker_connectors(self, method: str, **arguments: Any) -> list[Any]:
        """Call a method of each rank's connector."""
        return self._call("worker_connectors", method=method, **arguments)

    def kill_in_a_run(self, after_s: float) -> None:
        """Let the engine serve what is queued, and kill it in the middle of that."""
        self._send("run", limit_s=60.0)
        time.sleep(after_s)
        self.kill()


def random_tokens(seed: int, num_tokens: int) -> list[int]:
    """Return the same random token ids for the same seed, valid for every model of `models.py`."""
    rng = random.Random(seed)
    return [rng.randrange(400) for _ in range(num_tokens)]


def _defaults(model: Path) -> dict[str, Any]:
    config = json.loads((model / "config.json").read_text())
    return {
        "model": str(model),
        "dtype": config["dtype"],  # vLLM would turn float32 into bfloat16
        "enforce_eager": True,
        "disable_log_stats": False,
        "max_model_len": 4096,
        "kv_cache_memory_bytes": 256 << 20,
        "worker_extension_cls": "engine_probe.WorkerProbe",
    }
