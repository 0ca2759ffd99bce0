"""Run it: `python -m demo.dynamo`. Exits with 1 if anything it shows is not true.

The same chats go to two fleets of two fresh workers, one behind a router that follows what every
worker keeps, one behind a router that takes turns.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from demo.client import Client
from demo.command import Progress, exit_status, require_memory, vllm_version
from demo.disk import ssd_directory
from demo.dynamo.chats import Chats
from demo.dynamo.fleet import (
    NUM_WORKERS,
    SSD_CACHE_GB,
    Fleet,
    Setup,
    ask_router,
    running_fleet,
)
from demo.dynamo.report import view_of, write_report
from demo.dynamo.result import FROM_FLEXKV, FROM_VLLM, Known, Shown, check, tokens_from
from demo.model import build_model, describe

WORK = Path(__file__).parents[2] / ".work/dynamo"
ROUTINGS = {"kv": "KV-aware", "round-robin": "round-robin"}
METRICS_TIMEOUT_S = 20


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.dynamo", description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where to write (default: .work)")
    arguments = parser.parse_args()
    return exit_status(lambda: run(arguments.work))


def run(work: Path) -> None:
    """Show both fleets, print the table and write the report.

    Raises:
        DemoError: Something is missing, or something shown is not true.
    """
    say = Progress()
    require_memory()
    work.mkdir(parents=True, exist_ok=True)
    with ssd_directory(work, int(len(ROUTINGS) * NUM_WORKERS * SSD_CACHE_GB * (1 << 30))) as ssd:
        say("a model with random weights: made on this machine, once")
        model = build_model(work, "demo")
        dynamo = f"Dynamo {metadata.version('ai-dynamo')}, two workers of vLLM {vllm_version()}"
        subject = f"{dynamo} on this machine's CPU, {describe(model)}"
        say(subject)
        setup = Setup(model, work, ssd)
        kv, known = show(setup, "kv", say)
        round_robin, _ = show(setup, "round-robin", say)
    print_table([kv, round_robin], known)
    report = work / "report.html"
    report.write_text(write_report(subject, [kv, round_robin], known))
    print(f"\nReport: {report}")
    check(kv, round_robin, known)


def show(
    setup: Setup, mode: str, say: Callable[[str], None]
) -> tuple[Shown, Sequence[Sequence[Known]]]:
    """Have all chats over a fresh fleet; return the turns, and what a router knows of them."""
    say(f"starting Dynamo with {ROUTINGS[mode]} routing (logs: {setup.work}/{mode}-*.log)")
    with running_fleet(setup, mode) as fleet:
        say(f"ready on port {fleet.port}")
        chats = Chats()
        turns = chats.hold(Client(fleet.port), say)
        hits = sum(turn.answer.cached_tokens for turn in turns)
        shown = Shown(ROUTINGS[mode], turns, *count_sources(fleet, hits))
        prompts = [messages[:-1] for messages in chats.messages]
        known = ask_router(setup, fleet, prompts)
        say("stopping it")
    return shown, known


def count_sources(fleet: Fleet, hits: int) -> tuple[int, int]:
    """Return the tokens from vLLM's pages and from FlexKV, once the workers have counted all."""
    end_s = time.monotonic() + METRICS_TIMEOUT_S
    while True:
        metrics = [Client(port).metrics() for port in fleet.worker_ports]
        counts = tokens_from(FROM_VLLM, metrics), tokens_from(FROM_FLEXKV, metrics)
        if sum(counts) >= hits or time.monotonic() > end_s:
            return counts
        time.sleep(0.1)


def print_table(rows: Sequence[Shown], known: Sequence[Sequence[Known]]) -> None:
    """Print what both fleets hit, and what the router knew."""
    columns = ("tokens hit", "vLLM's pages", "FlexKV", "of", "first token")
    print(f"\n{'routing':<12}" + "".join(f"{column:>14}" for column in columns))
    for row in rows:
        numbers = row.hit_tokens, row.vllm_tokens, row.flexkv_tokens, row.prompt_tokens
        counts = "".join(f"{number:>14}" for number in numbers)
        print(f"{row.routing:<12}{counts}{1000 * row.ttft_s:>11.0f} ms")
    print(f"\n{view_of(known)}")


if __name__ == "__main__":
    sys.exit(main())
