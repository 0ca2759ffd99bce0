"""FlexKV's SSD tier behind real vLLM on a CPU: time to the first token after a restart.

    python -m benchmarks.vllm_restart [--quick] [--json FILE] [--work FOLDER]

Every round starts an engine on the same directory. It is asked, once each and for one token, the
prompts of the engine before it, which is gone: their KV comes from SSD; then new ones, three times,
as `vllm_end_to_end` does: cold, again, and from host memory. Slabs are read with O_DIRECT, so the
page cache has no part in it. The first round leaves blocks behind and does not count.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import packages_distributions, version
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.vllm_end_to_end import (
    QUIET_S,
    Contender,
    Engine,
    Workshop,
    visit_three_times,
)
from demo.model import describe

FULL = (500, 1500, 3500, 7000)
QUICK = (500, 1500)
ENGINE_ARGS = {"max_model_len": 8192, "max_num_batched_tokens": 8192}
Prompts = dict[int, list[int]]


def contender(directory: Path) -> Contender:
    """Return FlexKV with room on SSD for every round."""
    options = {"cpu_cache_gb": 1.0, "ssd_cache_gb": 4.0, "ssd_cache_dir": str(directory)}
    connector = {"kv_connector": "flexkv", "kv_connector_extra_config": options}
    return Contender("FlexKV", connector, ENGINE_ARGS)


def play_round(engine: Engine, workshop: Workshop, old: Prompts, new: Prompts) -> dict[int, Row]:
    """Ask for `old` prompts once and for `new` ones three times; return figures by prompt length.

    The warm-up also gives the engine the time to find what is on its disk.
    """
    for _ in range(3):
        engine.call("first_token", workshop.prompt(300))
        time.sleep(QUIET_S)
    figures: dict[int, Row] = {}
    for length in new:
        restored = engine.call("first_token", old[length]) if old else {}
        time.sleep(QUIET_S)
        visit = visit_three_times(engine, workshop, new[length])
        if old:
            figures[length] = {
                "cold_ms": visit["cold_ms"],
                "local_hit_ms": visit["local_hit_ms"],
                "host_ms": visit["restored_ms"],
                "ssd_ms": 1e3 * restored["s"],
                "ssd_tokens": restored["cached_tokens"],
                "cold_over_ssd": visit["cold_ms"] / (1e3 * restored["s"]),
            }
    return figures


def measure(work: Path, rounds: int, lengths: Sequence[int]) -> Iterator[Row]:
    """Yield a row for each length of prompt."""
    work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances() | {"vllm": version(packages_distributions()["vllm"][0])}
    figures: dict[int, list[Row]] = {length: [] for length in lengths}
    with ExitStack() as exits:
        workshop = Workshop(work, exits)
        flexkv = contender(workshop.folder())
        around |= {"model": describe(workshop.model), "rounds": rounds}
        old: Prompts = {}
        for number in range(rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            new = {length: workshop.prompt(length) for length in lengths}
            engine = workshop.engine(flexkv)
            for length, figure in play_round(engine, workshop, old, new).items():
                figures[length].append(figure)
            time.sleep(QUIET_S)
            engine.close()
            old = new
    for length, played in figures.items():
        row: Row = {"benchmark": "vllm_restart", "prompt_tokens": length}
        for key in played[0]:
            row |= rows.spread(key, [figure[key] for figure in played])
        yield row | around


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
