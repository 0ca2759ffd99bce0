"""Run benchmarks, each in a fresh process, and put their rows into `README.md`.

Run from the root of the checkout: `python -m benchmarks [--quick] [--only NAME]`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import rows

HERE = Path(__file__).parent
SGLANG_PYTHON = rows.ROOT / ".venv-sglang/bin/python"
QUICK: dict[str, tuple[str, ...]] = {
    "announcer": ("--blocks", "10000"),
    "control_plane": ("--rounds", "2", "--tree", "10000"),
    "copy_lane": ("--rounds", "2"),
    "identity": ("--rounds", "1", "--mib", "10"),
    "offload_tier": ("--rounds", "1"),
    "sglang_restart": ("--quick",),
    "sglang_storage": ("--rounds", "1"),
    "ssd_lane": ("--rounds", "1"),
    "ssd_restart": ("--rounds", "1", "--blocks", "10000"),
    "trace_replay": ("--requests", "1000"),
    "vllm_end_to_end": ("--quick",),
    "vllm_restart": ("--quick",),
    "vllm_step": ("--rounds", "2"),
}
"""All benchmarks, and what makes each of them quick."""

PYTHON = {"sglang_storage": SGLANG_PYTHON}
"""Those that run in another environment."""


def main() -> None:
    """Measure what was asked for; figures never make it fail."""
    parser = argparse.ArgumentParser(description="Measure, and write the tables of README.md.")
    parser.add_argument("--only", action="append", choices=QUICK, help="may be given repeatedly")
    parser.add_argument("--quick", action="store_true", help="see that it runs; keep no figures")
    arguments = parser.parse_args()
    results = rows.ROOT / ".work/quick-results" if arguments.quick else HERE / "results"
    for name in arguments.only or QUICK:
        run(name, results, QUICK[name] if arguments.quick else ())
    if not arguments.quick:
        readme = HERE / "README.md"
        readme.write_text(rows.fill_in(readme.read_text(), rows.read(results)))


def run(name: str, results: Path, options: tuple[str, ...]) -> None:
    """Run one benchmark; its rows replace those it wrote before."""
    print(f"== {name}", flush=True)
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    command = [
        PYTHON.get(name, sys.executable),
        "-m",
        f"benchmarks.{name}",
        "--json",
        str(file),
        *options,
    ]
    subprocess.run(command, cwd=rows.ROOT, check=True)


if __name__ == "__main__":
    main()
