"""What it costs to know a model: to hash it at the first start, and to recognise it at the next.

The files are new, and so in the page cache, as they are when an engine has just loaded them; with
`cold` they are dropped from it before.

Run from the root of the checkout: `python -m benchmarks.identity [--json FILE] [--rounds N]
[--mib N] [--work FOLDER]`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.identification import Identification

NUM_FILES = 100
SETTLED_S = 3.0
"""What was written just before is not remembered: it could change within one tick of a clock."""


def make_model(folder: Path, mib: int) -> None:
    """Write a checkpoint of `NUM_FILES` files, `mib` together, and wait until it is settled."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number in range(NUM_FILES):
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            file.write(os.urandom(mib * 2**20 // NUM_FILES))
            file.flush()
            os.fsync(file.fileno())
    time.sleep(SETTLED_S)


def drop(folder: Path) -> None:
    """Let the page cache forget a checkpoint."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def identify_s(model: Path, memory: Path) -> float:
    """Return the seconds until a model is known."""
    found: list[object] = []
    checkpoint = Checkpoint(model=str(model), hub_cache=model.parent)
    start = time.perf_counter()
    Identification({"model": checkpoint}, [memory], time.time(), found.append).join()
    taken_s = time.perf_counter() - start
    assert found, "it was not identified"
    return taken_s


def measure(work: Path, mib: int, rounds: int) -> Iterator[Row]:
    """Yield a row for the first start of each kind, and one for the next start."""
    with tempfile.TemporaryDirectory(prefix="identity-", dir=work) as folder:
        model = Path(folder) / "model"
        make_model(model, mib)
        seconds: dict[str, list[float]] = {"cached": [], "cold": [], "known": []}
        for number in range(rounds):
            for way in ("cached", "cold"):
                if way == "cold":
                    drop(model)
                seconds[way].append(identify_s(model, Path(folder) / f"{way}-{number}"))
            seconds["known"].append(identify_s(model, Path(folder) / f"cached-{number}"))
            for path in model.iterdir():
                path.read_bytes()
    for way, samples in seconds.items():
        yield {
            "benchmark": "identity",
            "start": way,
            "files": NUM_FILES,
            "mib": mib,
            **rows.spread("ms", (1000 * taken_s for taken_s in samples)),
            "rounds": rounds,
        }


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances()
    measured = [row | around for row in measure(arguments.work, arguments.mib, arguments.rounds)]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
