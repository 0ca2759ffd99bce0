"""Dynamo's frontend and two workers as child processes that never outlive the demo."""

import http.client
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from demo.client import Message
from demo.dynamo.result import Known
from demo.process import (
    HOST,
    Child,
    DemoError,
    free_port,
    require_running,
    start,
    stop,
    uninterrupted,
    wait_until,
)
from demo.server import engine_environment

NUM_WORKERS = 2
ENDPOINT = "dynamo.backend.generate"
VIEW_TIMEOUT_S = 120

BLOCK_TOKENS = 64
"""Tokens in vLLM's page, in our block and in the router's: 1 MiB of the demo's model."""

NUM_PAGES = 32
CPU_CACHE_GB = 48 / 1024
SSD_CACHE_GB = 0.25


class Setup(NamedTuple):
    """What both fleets have in common."""

    model: Path
    work: Path
    ssd: Path


class Fleet(NamedTuple):
    """One that answers."""

    port: int
    """Of the frontend."""

    worker_ports: Sequence[int]
    """Of the workers' metrics."""

    environment: dict[str, str]


@contextmanager
def running_fleet(setup: Setup, router_mode: str) -> Iterator[Fleet]:
    """Run a frontend and fresh workers; on the way out nothing of them is left.

    Raises:
        DemoError: One does not start or does not last; the end of its log has been printed.
    """
    # Outside the checkout, and short: it holds Unix sockets, whose paths have 107 bytes at most.
    outside = Path(tempfile.mkdtemp(prefix="flexkv-dynamo-"))
    metrics = [free_port(_metrics_ports()) for _ in range(NUM_WORKERS)]
    fleet = Fleet(free_port(), metrics, _environment(setup.work, outside))
    children: list[Child] = []
    try:
        children.extend(
            _start_worker(setup, fleet, outside, number, router_mode)
            for number in range(NUM_WORKERS)
        )
        children.append(_start_frontend(setup, fleet, outside, router_mode))
        wait_until(lambda: _is_ready(fleet.port), children)
        with _told_of_the_dead(children):
            yield fleet
    finally:
        with uninterrupted():
            stop(children)
            shutil.rmtree(outside, ignore_errors=True)


def ask_router(setup: Setup, fleet: Fleet, chats: Sequence[Sequence[Message]]) -> list[list[Known]]:
    """Return what a router of this fleet knows about chats, per chat and worker.

    Raises:
        DemoError: It does not answer.
    """
    asked = {
        "model": str(setup.model),
        "chats": chats,
        "endpoint": ENDPOINT,
        "block_tokens": BLOCK_TOKENS,
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("router_view.py"))],
        input=json.dumps(asked),
        env=fleet.environment | {"DYN_LOG": "error"},
        capture_output=True,
        text=True,
        timeout=VIEW_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        msg = f"the router could not be asked: {done.stderr.strip().rpartition(chr(10))[2]}"
        raise DemoError(msg)
    last_line = done.stdout.strip().rpartition("\n")[2]
    return [[Known(**worker) for worker in chat] for chat in json.loads(last_line)]


def _metrics_ports() -> list[int]:
    """List ports, shuffled: Dynamo 1.6 reads this one as 16 bits with a sign."""
    return random.sample(range(1 << 14, 1 << 15), 1000)


def _start_worker(
    setup: Setup, fleet: Fleet, outside: Path, number: int, router_mode: str
) -> Child:
    name = f"worker {number + 1}"
    metrics = outside / f"metrics-{number}"
    metrics.mkdir()
    environment = fleet.environment | {
        "DYN_SYSTEM_PORT": str(fleet.worker_ports[number]),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    ssd = setup.ssd / f"{router_mode}-{number}"
    command = _worker_command(setup.model, outside / f"events-{number}", ssd)
    log = setup.work / f"{router_mode}-worker-{number + 1}.log"
    return start(name, command, environment, outside, log)


def _worker_command(model: Path, events: Path, ssd: Path) -> list[str]:
    extra = {
        "cpu_cache_gb": CPU_CACHE_GB,
        "ssd_cache_gb": SSD_CACHE_GB,
        "ssd_cache_dir": str(ssd),
        "block_tokens": BLOCK_TOKENS,
    }
    transfer = {
        "kv_connector": "flexkv",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    # vLLM binds no TCP address but all of them, and connects to any other.
    publish = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"ipc://{events}"}
    options = {
        "model": model,
        "served-model-name": "demo",
        "dtype": "float32",
        "block-size": BLOCK_TOKENS,
        "num-gpu-blocks-override": NUM_PAGES,
        "max-model-len": 1536,
        "kv-transfer-config": json.dumps(transfer),
        "kv-events-config": json.dumps(publish),
    }
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), "--enforce-eager"]
    return [*command, *(f"--{key}={value}" for key, value in options.items())]


def _start_frontend(setup: Setup, fleet: Fleet, outside: Path, router_mode: str) -> Child:
    command = [
        *(sys.executable, "-m", "dynamo.frontend"),
        *("--router-mode", router_mode),
        *("--http-host", HOST),
        *("--http-port", str(fleet.port)),
    ]
    log = setup.work / f"{router_mode}-frontend.log"
    return start("the frontend", command, fleet.environment, outside, log)


def _environment(work: Path, outside: Path) -> dict[str, str]:
    """Let processes find each other by files, and talk without etcd and NATS."""
    kept = {
        key: value
        for key, value in engine_environment(work).items()
        if not key.startswith(("DYN_", "FLEXKV_"))
    }
    return kept | {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(outside / "discovery"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_TCP_RPC_HOST": HOST,
        "DYN_TCP_RESPONSE_STREAM_HOST": HOST,
        "DYN_SYSTEM_HOST": HOST,
        "DYN_EVENT_PLANE": "zmq",
        "DYN_EVENT_PLANE_HOST": HOST,  # told to others: Dynamo 1.6 binds all addresses
    }


@contextmanager
def _told_of_the_dead(children: Sequence[Child]) -> Iterator[None]:
    """Blame a failure on the process that has ended, if one has."""
    try:
        yield
    except (DemoError, OSError, http.client.HTTPException) as error:
        require_running(children)
        if isinstance(error, DemoError):
            raise
        msg = f"Dynamo does not answer: {error} (its logs: {children[0].log.parent})"
        raise DemoError(msg) from error


def _is_ready(port: int) -> bool:
    """Whether the frontend knows all workers and serves their model."""
    try:
        instances = _get(port, "/health")["instances"]
        models = _get(port, "/v1/models")["data"]
    except (OSError, http.client.HTTPException, KeyError, ValueError):
        return False
    workers = [one for one in instances if one["endpoint"] == ENDPOINT.rpartition(".")[2]]
    return bool(models) and len(workers) == NUM_WORKERS


def _get(port: int, path: str) -> dict[str, list[dict[str, str]]]:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return dict(json.load(connection.getresponse()))
    finally:
        connection.close()
