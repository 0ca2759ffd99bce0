"""vLLM's OpenAI server, as users start it, in a process of its own."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environment import safe_environment
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
START_LIMIT_S = 300.0
COUNT_LIMIT_S = 60.0
_AS_USERS_START_IT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # offers `/reset_prefix_cache`
}


class ServerFailure(AssertionError):
    """The server did not start, or answered with an error."""


class HttpServer:
    """One server with one configuration. Slow to start (20 s and more): share it.

    Args:
        model: Folder of a model of `models.py`.
        folder: Empty folder of this server alone: working directory and log.
        connector: `--kv-transfer-config`, or None for none.
        env: Environment on top of the harness's own.
        options: Other options of the command line, with `_` for `-`; True for those without value.
    """

    def __init__(
        self,
        model: Path,
        folder: Path,
        connector: dict[str, Any] | None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.log = folder / "server.log"
        self.port = free_port()
        options = _defaults(model) | {"port": self.port} | options
        if connector is not None:
            options["kv_transfer_config"] = {"kv_role": "kv_both"} | connector
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *_flags(options)],
                cwd=folder,
                env=safe_environment() | _AS_USERS_START_IT | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_ready()

    @property
    def pid(self) -> int:
        """The server's process; its engines and workers are among the descendants."""
        return self._process.pid

    def post(self, path: str, content: Any = None, **headers: str) -> Any:
        """Post JSON and return the answer's, or None if it is empty."""
        body = self._ask("POST", path, json.dumps(content), headers)
        return json.loads(body) if body else None

    def complete(self, prompt: list[int], max_tokens: int = 8, rank: int = 0, **more: Any) -> Any:
        """Complete token ids greedily, on data-parallel rank `rank`."""
        content = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        asked = content | {"return_token_ids": True} | more
        return self.post("/v1/completions", asked, **{"X-data-parallel-rank": str(rank)})

    def chat(self, text: str, max_tokens: int = 8, **more: Any) -> Any:
        """Send one user message."""
        messages = [{"role": "user", "content": text}]
        content = {"messages": messages, "max_tokens": max_tokens, "temperature": 0}
        fixed = {"ignore_eos": True, "return_token_ids": True}
        return self.post("/v1/chat/completions", content | fixed | more)

    def metrics(self) -> dict[str, Metric]:
        """Return the metric families of `/metrics` by name."""
        page = self._ask("GET", "/metrics").decode()
        return {family.name: family for family in text_string_to_metric_families(page)}

    def wait_for(self, metric: str, value: float) -> None:
        """Wait until all engines together have counted so much."""
        deadline = time.monotonic() + COUNT_LIMIT_S
        while (counted := self._total(metric)) < value:
            if time.monotonic() > deadline:
                raise ServerFailure(f"{metric} is {counted}, not {value}, after {COUNT_LIMIT_S} s")
            time.sleep(0.1)

    def close(self) -> None:
        """End the server and everything it started."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        self._kill()

    def _total(self, metric: str) -> float:
        samples = self.metrics()[metric].samples
        return sum(sample.value for sample in samples if sample.name == f"{metric}_total")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ServerFailure):
                self._ask("GET", "/health")
                return
            time.sleep(0.3)
        self._kill()
        tail = self.log.read_text(errors="replace")[-4000:]
        raise ServerFailure(f"no server (status {self._process.returncode}); its log ends:\n{tail}")

    def _ask(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] = {}
    ) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        try:
            all_headers = {"content-type": "application/json", **headers}
            connection.request(method, path, body, all_headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise ServerFailure(f"{method} {path} gave {answer.status}: {content[:1000]!r}")
        return content

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)


def cached_tokens(answer: Any) -> int:
    """Return the prompt tokens that the server says it did not compute."""
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _defaults(model: Path) -> dict[str, Any]:
    return {
        "model": str(model),
        "served_model_name": "tiny",
        "host": HOST,
        "dtype": json.loads((model / "config.json").read_text())["dtype"],
        "max_model_len": 4096,
        "kv_cache_memory_bytes": 128 << 20,
        "enforce_eager": True,
        "enable_prompt_tokens_details": True,
    }


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return flags
