"""Run the measurement plan on one GPU in less than 8 minutes; print a table, write JSON rows.

Run from the root of the checkout, beside nothing else: `python -m benchmarks.gpu [--quick]`.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import rows
from benchmarks.gpu import exactness, interference, kernel, limits, machine, paths
from benchmarks.gpu.budget import Budget
from benchmarks.rows import Row

BUDGET_S = 450.0
EXACTNESS_S = 120.0
"""Part of the budget that transfers which are compared byte for byte may take."""


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    transfers: int
    """Random ones, in each layout."""

    payload: int
    """Bytes of one transfer, of those that are not swept."""

    width: int
    """Of the matrices beside which transfers run."""


FULL = Size(rounds=7, transfers=20_000, payload=256 << 20, width=8192)
QUICK = Size(rounds=1, transfers=100, payload=16 << 20, width=1024)


def steps(size: Size) -> dict[str, Callable[[], Iterable[Row]]]:
    """Return the plan, in order: what cannot be right is not worth measuring."""
    rounds, payload = size.rounds, size.payload
    few = min(rounds, 3)
    return {
        "exactness": lambda: exactness.exactness(size.transfers, Budget(EXACTNESS_S)),
        "flat copies": partial(limits.flat, rounds, payload),
        "lane": partial(paths.lanes, rounds, payload),
        "baselines": partial(paths.baselines, few, payload),
        "slowdown of compute": partial(interference.slowdowns, rounds, payload, size.width),
        "kernel": partial(kernel.grids, rounds, payload),
        "small transfers": partial(paths.small_transfers, rounds),
        "rows": partial(limits.row_copies, rounds, payload),
        "kernel on pinned memory": partial(kernel.direct, rounds, payload // 4),
        "pinning": partial(limits.registering, few, 8 * payload),
    }


def measure(plan: dict[str, Callable[[], Iterable[Row]]], budget: Budget) -> Iterator[Row]:
    """Yield the rows of every step; a step stops between two rows when the time is over."""
    for name, step in plan.items():
        print(f"== {name}", flush=True)
        for row in step():
            print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            yield row
            if budget.is_spent:
                break
        if budget.is_spent:
            print(f"out of time during: {name}", flush=True)
            return


def main() -> None:
    """Measure, if there is something to measure on."""
    parser = argparse.ArgumentParser(description="Measure the GPU lane on the GPU of this machine.")
    parser.add_argument("--json", type=Path, default=rows.ROOT / "benchmarks/results/gpu.jsonl")
    parser.add_argument("--quick", action="store_true", help="see that it runs; few rounds")
    arguments = parser.parse_args()
    if reason := machine.why_no_gpu():
        print(f"not run: no GPU ({reason})")
        return
    around = {**rows.circumstances(), **machine.circumstances()}
    plan = steps(QUICK if arguments.quick else FULL)
    measured: list[Row] = []
    try:
        measured.extend({**row, **around} for row in measure(plan, Budget(BUDGET_S)))
    finally:  # a step that fails takes nothing from those before it
        rows.write(arguments.json, measured)
    for name in dict.fromkeys(row["benchmark"] for row in measured):
        print(f"\n{name}\n{rows.render(rows.select(measured, {'benchmark': name}))}")


if __name__ == "__main__":
    main()
