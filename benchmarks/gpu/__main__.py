"""Run the measurement plan on one GPU in less than 8 minutes; print a table, write JSON rows.

Run from the root of the checkout, beside nothing else: `python -m benchmarks.gpu [--quick]`.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import rows
from benchmarks.gpu import exactness, interference, kernel, limits, machine, paths
from benchmarks.gpu.budget import Budget
from benchmarks.rows import Row

BUDGET_S = 450.0
EXACTNESS_S = 120.0
"""Part of the budget that transfers which are compared byte for byte may take."""

NUM_TRANSFERS = 20_000
"""In each of five layouts: 10^5 together."""


def steps(rounds: int, num_transfers: int) -> dict[str, Callable[[], Iterable[Row]]]:
    """Return the plan, in order: what cannot be right is not worth measuring."""
    return {
        "exactness": lambda: exactness.exactness(num_transfers, Budget(EXACTNESS_S)),
        "flat copies": partial(limits.flat, rounds),
        "lane": partial(paths.lanes, rounds),
        "baselines": partial(paths.baselines, 3),
        "slowdown of compute": partial(interference.slowdowns, rounds),
        "kernel": partial(kernel.grids, rounds),
        "small transfers": partial(paths.small_transfers, rounds),
        "rows": partial(limits.row_copies, rounds),
        "kernel on pinned memory": partial(kernel.direct, rounds),
        "pinning": partial(limits.registering, 3),
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
    plan = steps(*((1, 100) if arguments.quick else (7, NUM_TRANSFERS)))
    measured: list[Row] = []
    try:
        measured.extend({**row, **around} for row in measure(plan, Budget(BUDGET_S)))
    finally:  # a step that fails takes nothing from those before it
        rows.write(arguments.json, measured)
    for name in dict.fromkeys(row["benchmark"] for row in measured):
        print(f"\n{name}\n{rows.render(rows.select(measured, {'benchmark': name}))}")


if __name__ == "__main__":
    main()
