"""Rows: what a benchmark measured, as JSON lines, and as the tables of `README.md`.

A row is a JSON object on a line of its own. It names its benchmark, says under which circumstances
it was measured, and holds the figures; `<name>_min_max` is the spread of figure `<name>`.
"""

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
WRITTEN_BY_BENCHMARKS = ("benchmarks/results", "benchmarks/README.md")
CIRCUMSTANCES = (
    "commit",
    "machine",
    "memory_gib",
    "system",
    "python",
    "numpy",
    "vllm",
    "sglang",
    "lmcache",
    "model",
    "load_at_start",
    "date",
    "rounds",
)
"""Keys that belong under a table where all its rows agree on them, in this order."""

_SPREAD = "_min_max"
_TABLE = re.compile(r"(<!-- rows (\{.*?\}) -->\n).*?(<!-- end of rows -->)", re.DOTALL)


def circumstances() -> Row:
    """Return what a figure means nothing without. Call it before anything is started."""
    return {
        "commit": _commit(),
        "machine": _machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def spread(name: str, samples: Iterable[float]) -> Row:
    """Return the median of `samples` as `name`, and beside it the smallest and the largest."""
    ordered = sorted(samples)
    ends = [_four_digits(ordered[0]), _four_digits(ordered[-1])]
    return {name: _four_digits(statistics.median(ordered)), name + _SPREAD: ends}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` to `path`, one on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path) -> list[Row]:
    """Return the rows of all files in `folder`."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def fill_in(text: str, rows: Sequence[Row]) -> str:
    """Return `text` with the tables between its markers made anew.

    A marker holds the JSON object that a row must contain to be in its table:
    `<!-- rows {"benchmark": "copy_lane"} -->` up to `<!-- end of rows -->`.
    """

    def table(marker: re.Match[str]) -> str:
        wanted = json.loads(marker[2])
        return f"{marker[1]}{render(select(rows, wanted), leave_out=tuple(wanted))}\n{marker[3]}"

    return _TABLE.sub(table, text)


def select(rows: Iterable[Row], wanted: Row) -> list[Row]:
    """Return the rows that contain all of `wanted`."""
    return [row for row in rows if wanted.items() <= row.items()]


def render(rows: Sequence[Row], leave_out: Sequence[str] = ("benchmark",)) -> str:
    """Return `rows` as a Markdown table; what they have in common stands below it."""
    if not rows:
        return "Not measured yet: `make bench`."
    shared = [key for key in CIRCUMSTANCES if key in rows[0] and _agree(rows, key)]
    skipped = {*shared, *leave_out}
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in keys if key not in skipped and not key.endswith(_SPREAD)]
    lines = [[key.replace("_", " ") for key in columns], ["---"] * len(columns)]
    lines += [[_cell(row, key) for key in columns] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = ", ".join(f"{key.replace('_', ' ')} {rows[0][key]}" for key in shared)
    return f"{table}\n\nMedian (smallest - largest) where a spread is given; {below}."


def _agree(rows: Sequence[Row], key: str) -> bool:
    return all(row.get(key) == rows[0][key] for row in rows)


def _cell(row: Row, key: str) -> str:
    text = _written(row.get(key))
    smallest, largest = row.get(key + _SPREAD, (None, None))
    if smallest != largest:
        text += f" ({_written(smallest)} - {_written(largest)})"
    return text


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _commit() -> str:
    """Name the commit; what benchmarks write themselves does not make it dirty."""
    commit = _git("rev-parse", "--short", "HEAD")
    others = [f":(exclude){path}" for path in WRITTEN_BY_BENCHMARKS]
    changed = _git("status", "--porcelain", "--", ".", *others)
    return f"{commit}-dirty" if changed else commit or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()


def _machine() -> str:
    """Return number and name of the processors."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else f"{os.cpu_count()} x {platform.machine()}"
