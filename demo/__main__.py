"""Run the demo: `python -m demo`. Exits with 1 if anything it shows is not true."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo.client import Client
from demo.command import Progress, exit_status, require_memory, vllm_version
from demo.disk import flexkv_fsck, flexkv_ls, flip_first_blocks, ssd_directory
from demo.model import MODELS, build_model, describe, kv_token_bytes
from demo.report import Row, summarise, write_report
from demo.scenario import (
    COLD,
    FLIPPED,
    HOST,
    KILLED,
    Round,
    blocks_on_ssd,
    wait_until_found,
)
from demo.server import Server, Setup, running_server

WORK = Path(__file__).parents[1] / ".work/demo"


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="show this one alone (default: both)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--work", type=Path, default=WORK, help="where to write (default: .work)")
    arguments = parser.parse_args()
    names = [arguments.model] if arguments.model else list(MODELS)
    return exit_status(lambda: run_all(names, arguments.rounds, arguments.work))


def run_all(names: Sequence[str], num_rounds: int, work: Path) -> None:
    """Run the demo with each model."""
    for name in names:
        run(name, num_rounds, work)


def run(name: str, num_rounds: int, work: Path) -> None:
    """Serve a model, go through the rounds, print the table and write the report.

    Raises:
        DemoError: Something is missing, or something shown is not true.
    """
    say = Progress()
    require_memory()
    work.mkdir(parents=True, exist_ok=True)
    # A round leaves about 110 MiB on SSD; there is one to warm up.
    ssd_cache_gb = 1 + num_rounds // 8
    with ssd_directory(work, ssd_cache_gb << 30) as ssd:
        say("a model with random weights: made on this machine, once")
        model = build_model(work, name)
        subject = f"vLLM {vllm_version()} on this machine's CPU, {describe(model)}"
        say(subject)
        token_bytes = kv_token_bytes(model)
        rounds = [Round(number, token_bytes, say) for number in range(num_rounds + 1)]
        listings = show_all(Setup(model, work, ssd, ssd_cache_gb, MODELS[name]), rounds, say)
    rows = summarise([one.shown for one in rounds[1:]])
    print_table(rows)
    print("", *listings, sep="\n")
    report = work / f"report-{name}.html"
    report.write_text(write_report(subject, rows, num_rounds))
    print(f"\nEvery answer was checked. Report: {report}")


def show_all(setup: Setup, rounds: Sequence[Round], say: Callable[[str], None]) -> list[str]:
    """Go through the rounds, over three starts of the server; return what `flexkv` printed.

    The first round warms the server up.

    Raises:
        DemoError: Something shown is not true.
    """
    with started(setup, "server.log", say) as server:
        client = Client(server.port)
        for number, one in enumerate(rounds):
            say(f"round {number} of {len(rounds) - 1}: time to first token")
            one.begin(client)
        num_blocks = blocks_on_ssd(client)
        say(f"kill -9, with {num_blocks} blocks on SSD")
        server.kill()
    with started(setup, "server-killed.log", say) as server:
        ask_again(Client(server.port), KILLED, rounds, num_blocks)
        say("stopping the server")
    num_flipped = flip_first_blocks(setup.ssd)
    say(f"flipped bytes in the first block of each of {num_flipped} prompts")
    listings = [*flexkv_ls(setup.ssd), "", *flexkv_fsck(setup.ssd, num_flipped)]
    say(f"flexkv fsck found all {num_flipped}")
    with started(setup, "server-flipped.log", say) as server:
        ask_again(Client(server.port), FLIPPED, rounds, num_blocks)
        say("stopping the server")
    return listings


@contextmanager
def started(setup: Setup, log: str, say: Callable[[str], None]) -> Iterator[Server]:
    """Run the server, and say so."""
    say(f"starting vLLM's OpenAI server with the flexkv connector (log: {setup.work / log})")
    with running_server(setup, setup.work / log) as server:
        say(f"ready on port {server.port}")
        yield server


def ask_again(client: Client, step: str, rounds: Sequence[Round], num_blocks: int) -> None:
    """Ask the first question about every document, once the server has found what is on SSD."""
    wait_until_found(client, num_blocks)
    for one in rounds:
        one.repeat(client, step)


def print_table(rows: list[Row]) -> None:
    """Print medians, and how much sooner a hit answers."""
    print(f"\n{'':<26} {'TTFT':>9} {'cached tokens':>14} {'loaded':>9}  source")
    for row in rows:
        ttft, loaded = f"{1000 * row.ttft_s:.0f} ms", f"{row.loaded_bytes / 2**20:.1f} MiB"
        cached = f"{row.cached_tokens} / {row.prompt_tokens}"
        print(f"{row.step:<26} {ttft:>9} {cached:>14} {loaded:>9}  {row.source}")
    ttft_s = {row.step: row.ttft_s for row in rows}
    host, ssd = (ttft_s[COLD] / ttft_s[step] for step in (HOST, KILLED))
    print(f"\nThe first token came {host:.1f} x sooner from host memory, {ssd:.1f} x from SSD.")


if __name__ == "__main__":
    sys.exit(main())
