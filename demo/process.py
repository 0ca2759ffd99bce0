"""Child processes that never outlive the demo."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 15
LOG_TAIL_LINES = 15
ERROR_LINE = r"^(?:\(.*?\) ERROR .*?\] )?([\w.]*(?:Error|Exception): .+)$"


class DemoError(Exception):
    """What went wrong, in one line."""


class Child(NamedTuple):
    """A process that leads a group of its own, and the log of the group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def start(
    name: str, command: Sequence[str], environment: dict[str, str], cwd: Path, log: Path
) -> Child:
    """Start a process; what it and its children print goes to `log`."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(name, process, log)


def wait_until(is_ready: Callable[[], bool], children: Sequence[Child]) -> None:
    """Return when they are ready.

    Raises:
        DemoError: One of them has ended, or it takes too long.
    """
    end_s = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        require_running(children)
        if time.monotonic() > end_s:
            logs = ", ".join(str(child.log) for child in children)
            msg = f"no answer within {START_TIMEOUT_S} s, see {logs}"
            raise DemoError(msg)
        time.sleep(0.2)


def require_running(children: Sequence[Child]) -> None:
    """Raise if one of them has ended; the end of its log has been printed then."""
    for child in children:
        if child.process.poll() is not None:
            raise DemoError(_why_it_ended(child))


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


def free_port(candidates: Sequence[int] = (0,)) -> int:
    """Return the first port of `candidates` that nobody listens on; 0 is any."""
    for port in candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise DemoError("no port is free")


def stop(children: Sequence[Child]) -> None:
    """End children and theirs: politely, then not. Returns when none of them runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end(children, number)


def end(children: Sequence[Child], number: signal.Signals) -> None:
    """Send a signal to children and theirs; wait until they have ended, within limits."""
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child.process.pid, number)
    end_s = time.monotonic() + STOP_TIMEOUT_S
    while any(_is_running(child.process.pid) for child in children) and time.monotonic() < end_s:
        time.sleep(0.1)
        for child in children:
            child.process.poll()


def _why_it_ended(child: Child) -> str:
    """Print the end of the log and return the reason in one line."""
    log = child.log.read_text(errors="replace")
    print(*log.splitlines()[-LOG_TAIL_LINES:], sep="\n", file=sys.stderr)
    # The first process that fails has the cause; those that fail after it only say so.
    errors = re.findall(ERROR_LINE, log, re.MULTILINE)
    reason = (errors or [f"status {child.process.returncode}, no error in its log"])[0]
    return f"{child.name} ended: {reason} (all of it: {child.log})"


def _is_running(group: int) -> bool:
    """Whether a process of `group` is alive; those that wait to be reaped are not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                return True
    return False
