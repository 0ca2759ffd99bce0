"""vLLM's own OpenAI server as a child process that never outlives the demo."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 15
LOG_TAIL_LINES = 15
ERROR_LINE = r"^(?:\(.*?\) ERROR .*?\] )?([\w.]*(?:Error|Exception): .+)$"

BLOCK_TOKENS = 128
"""Tokens in vLLM's page on a CPU, and so in our block: a hit ends at a multiple of it."""

KV_TRANSFER = {"kv_connector": "flexkv", "kv_role": "kv_both"}


class DemoError(Exception):
    """What went wrong, in one line."""


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

    process: subprocess.Popen[bytes]
    port: int

    def kill(self) -> None:
        """End it and its workers with SIGKILL; returns when none of them runs."""
        _end(self.process, signal.SIGKILL)


@contextmanager
def running_server(setup: Setup, log_path: Path) -> Iterator[Server]:
    """Run the server and yield it; on the way out nothing of it is left.

    Raises:
        DemoError: It does not start or does not last; the end of its log has been printed.
    """
    port = _free_port()
    # Outside the checkout, so that vLLM imports what is installed and nothing that lies here.
    outside = tempfile.mkdtemp(prefix="flexkv-demo-")
    with log_path.open("w") as log:
        server = subprocess.Popen(
            _command(setup, port),
            cwd=outside,
            env=_environment(setup),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(server, port, log_path)
        yield Server(server, port)
    except (OSError, http.client.HTTPException) as error:
        if server.poll() is None:
            msg = f"the server does not answer: {error} (its log: {log_path})"
            raise DemoError(msg) from error
        raise DemoError(_why_it_ended(server, log_path)) from error
    finally:
        with uninterrupted():
            _stop(server)
            shutil.rmtree(outside, ignore_errors=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore the signals that end the demo: an impatient second one must not leave it unswept."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
    """Keep the server offline, and what it writes out of the user's home and SSD tier."""
    changed = {
        "DO_NOT_TRACK": "1",
        "FLEXKV_SSD_CACHE_DIR": str(setup.ssd),
        "FLEXKV_SSD_CACHE_GB": str(setup.ssd_cache_gb),
        "HF_HOME": str(setup.work / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "VLLM_CACHE_ROOT": str(setup.work / "vllm"),
        "VLLM_CONFIG_ROOT": str(setup.work / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # `/reset_prefix_cache`
    }
    # An allow-list of plug-ins would hide ours.
    kept = {key: value for key, value in os.environ.items() if key != "VLLM_PLUGINS"}
    # Enough for the demo, and small beside whatever else runs on this machine.
    return {"FLEXKV_CPU_CACHE_GB": "1", **kept, **changed}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log_path: Path) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while not _answers(port):
        if server.poll() is not None:
            raise DemoError(_why_it_ended(server, log_path))
        if time.monotonic() > end_s:
            msg = f"the server did not answer within {START_TIMEOUT_S} s, see {log_path}"
            raise DemoError(msg)
        time.sleep(0.2)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _why_it_ended(server: subprocess.Popen[bytes], log_path: Path) -> str:
    """Print the end of the log and return the reason in one line."""
    log = log_path.read_text(errors="replace")
    print(*log.splitlines()[-LOG_TAIL_LINES:], sep="\n", file=sys.stderr)
    # The first process that fails has the cause; those that fail after it only say so.
    errors = re.findall(ERROR_LINE, log, re.MULTILINE)
    reason = (errors or [f"status {server.returncode}, no error in its log"])[0]
    return f"the server ended: {reason} (all of it: {log_path})"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers: politely, then not. Returns when none of them runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _end(server, number)


def _end(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the server and its workers; wait until they have ended, within limits."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, number)
    end_s = time.monotonic() + STOP_TIMEOUT_S
    while _is_running(server.pid) and time.monotonic() < end_s:
        time.sleep(0.1)
        server.poll()


def _is_running(group: int) -> bool:
    """Whether a process of `group` is alive; those that wait to be reaped are not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                return True
    return False
