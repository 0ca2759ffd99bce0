"""vLLM's own OpenAI server as a child process that never outlives the demo."""

import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from demo.process import (
    HOST,
    Child,
    DemoError,
    end,
    free_port,
    require_running,
    start,
    stop,
    uninterrupted,
    wait_until,
)

BLOCK_TOKENS = 128
"""Tokens in vLLM's page on a CPU, and so in our block: a hit ends at a multiple of it."""

KV_TRANSFER = {"kv_connector": "flexkv", "kv_role": "kv_both"}


@dataclass(frozen=True, slots=True)
class Setup:
    """What every start of the server has in common."""

    model: Path
    work: Path
    ssd: Path
    ssd_cache_gb: int
    options: tuple[str, ...] = ()
    """Of vLLM's command line, for this model."""


class Server(NamedTuple):
    """One that answers."""

    child: Child
    port: int

    def kill(self) -> None:
        """End it and its workers with SIGKILL; returns when none of them runs."""
        end([self.child], signal.SIGKILL)


@contextmanager
def running_server(setup: Setup, log_path: Path) -> Iterator[Server]:
    """Run the server and yield it; on the way out nothing of it is left.

    Raises:
        DemoError: It does not start or does not last; the end of its log has been printed.
    """
    port = free_port()
    # Outside the checkout, so that vLLM imports what is installed and nothing that lies here.
    outside = Path(tempfile.mkdtemp(prefix="flexkv-demo-"))
    server = start("the server", _command(setup, port), _environment(setup), outside, log_path)
    try:
        wait_until(lambda: _answers(port), [server])
        yield Server(server, port)
    except (OSError, http.client.HTTPException) as error:
        require_running([server])
        msg = f"the server does not answer: {error} (its log: {log_path})"
        raise DemoError(msg) from error
    finally:
        with uninterrupted():
            stop([server])
            shutil.rmtree(outside, ignore_errors=True)


def _command(setup: Setup, port: int) -> list[str]:
    # The module, not the `vllm` command: with the CPU wheel the command does not find its version.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = {
        "model": setup.model,
        "served-model-name": "demo",
        "host": HOST,
        "port": port,
        # With float32 a prefix that was loaded and one that was computed give equal answers;
        # bfloat16 rounds differently for different shapes.
        "dtype": "float32",
        "block-size": BLOCK_TOKENS,
        "max-model-len": 8192,
        "max-num-batched-tokens": 8192,
        "kv-transfer-config": json.dumps(KV_TRANSFER),
    }
    flags = ["--enforce-eager", "--enable-prompt-tokens-details"]
    return [
        *command,
        *(f"--{key}={value}" for key, value in options.items()),
        *flags,
        *setup.options,
    ]


def _environment(setup: Setup) -> dict[str, str]:
    """Keep what the server writes out of the user's SSD tier."""
    changed = {
        "FLEXKV_SSD_CACHE_DIR": str(setup.ssd),
        "FLEXKV_SSD_CACHE_GB": str(setup.ssd_cache_gb),
        "VLLM_SERVER_DEV_MODE": "1",  # `/reset_prefix_cache`
    }
    # Enough for the demo, and small beside whatever else runs on this machine.
    return {"FLEXKV_CPU_CACHE_GB": "1", **engine_environment(setup.work), **changed}


def engine_environment(work: Path) -> dict[str, str]:
    """Return an environment that keeps vLLM offline, and what it writes out of the user's home."""
    changed = {
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(work / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "VLLM_CACHE_ROOT": str(work / "vllm"),
        "VLLM_CONFIG_ROOT": str(work / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    # An allow-list of plug-ins would hide ours.
    return {key: value for key, value in os.environ.items() if key != "VLLM_PLUGINS"} | changed


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
