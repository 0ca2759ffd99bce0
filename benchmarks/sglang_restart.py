"""FlexKV below HiCache in real SGLang on a CPU: time to the first token, also after a restart.

    python -m benchmarks.sglang_restart [--quick] [--json FILE] [--work FOLDER]

Every round starts an engine on the same directory. It is asked, once each and for one token, the
prompts of the engine before it, which is gone: their KV comes from SSD; then new ones, three times:
cold, again, and once more after other prompts have pushed them out of SGLang's device pages, so
that HiCache's host pages give them. The first round leaves blocks behind and does not count. Needs
`.venv-sglang`; slabs are read with O_DIRECT.
"""

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import rows
from benchmarks.rows import Row
from demo.model import build_model, describe

sys.path.append(str(rows.ROOT / "compat_tests/sglang"))

from sglang_process import SglangCompletion, SglangProcess, flexkv

SGLANG_PYTHON = rows.ROOT / ".venv-sglang/bin/python"
FULL = (500, 1500, 3500)
QUICK = (500, 1500)
DEVICE_TOKENS = 8192
PUSHING_TOKENS = 3000
Prompts = dict[int, list[int]]

_random = random.Random(1)


def new_prompt(num_tokens: int) -> list[int]:
    """Return a prompt that nobody has seen."""
    return _random.choices(range(400), k=num_tokens)


def play_round(engine: SglangProcess, old: Prompts, new: Prompts) -> dict[int, Row]:
    """Ask for `old` prompts once and for `new` ones three times; return figures by prompt length.

    The warm-up also gives the engine the time to find what is on its disk.
    """
    for _ in range(3):
        engine.complete(new_prompt(300), 1)
    from_ssd = {length: engine.complete(prompt, 1) for length, prompt in old.items()}
    cold = {length: engine.complete(prompt, 1) for length, prompt in new.items()}
    again = {length: engine.complete(prompt, 1) for length, prompt in new.items()}
    for _ in range(-(-DEVICE_TOKENS // PUSHING_TOKENS)):
        engine.complete(new_prompt(PUSHING_TOKENS), 1)
    from_host = {length: engine.complete(prompt, 1) for length, prompt in new.items()}
    return {
        length: _figures(cold[length], again[length], from_host[length], from_ssd[length])
        for length in old
    }


def _figures(
    cold: SglangCompletion,
    again: SglangCompletion,
    from_host: SglangCompletion,
    from_ssd: SglangCompletion,
) -> Row:
    return {
        "cold_ms": 1e3 * cold.seconds,
        "device_hit_ms": 1e3 * again.seconds,
        "host_ms": 1e3 * from_host.seconds,
        "host_tokens": from_host.sources.get("host", 0),
        "ssd_ms": 1e3 * from_ssd.seconds,
        "ssd_tokens": from_ssd.num_from_storage,
        "cold_over_ssd": cold.seconds / from_ssd.seconds,
    }


def measure(work: Path, rounds: int, lengths: Sequence[int]) -> Iterator[Row]:
    """Yield a row for each length of prompt."""
    work.mkdir(parents=True, exist_ok=True)
    model = build_model(work, "demo")
    around = rows.circumstances() | {"sglang": sglang_version(), "model": describe(model)}
    figures: dict[int, list[Row]] = {length: [] for length in lengths}
    with TemporaryDirectory(prefix="bench-", dir=work) as name:
        old: Prompts = {}
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            new = {length: new_prompt(length) for length in lengths}
            folder = Path(name) / str(number)
            folder.mkdir()
            storage = flexkv(Path(name) / "ssd", ssd_cache_gb=4)
            engine = SglangProcess(
                model, folder, storage, python=SGLANG_PYTHON, max_total_tokens=DEVICE_TOKENS
            )
            with closing(engine):
                for length, figure in play_round(engine, old, new).items():
                    figures[length].append(figure)
            old = new
    for length, played in figures.items():
        row: Row = {"benchmark": "sglang_restart", "prompt_tokens": length}
        for key in played[0]:
            row |= rows.spread(key, [figure[key] for figure in played])
        yield row | around | {"rounds": rounds}


def sglang_version() -> str:
    """Ask the other environment."""
    command = [SGLANG_PYTHON, "-c", "from importlib.metadata import *; print(version('sglang'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="see that it runs")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    rounds, lengths = (1, QUICK) if arguments.quick else (arguments.rounds, FULL)
    measured = list(measure(arguments.work.resolve(), rounds, lengths))
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
