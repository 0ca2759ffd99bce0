"""Plant known faults in a copy of the sources, one at a time, and see whether tests notice.

`mutants.yaml` beside this is the list. A test run that passes although a fault is planted is a
*survivor*: a test is missing. A text that is not found exactly once is an error, so the list keeps
up with the sources. Exit status: 0 if there is neither.

    python scripts/mutants.py              all of them, about 10 minutes on 2 cores
    python scripts/mutants.py slots lru    those of files whose name contains one of these
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".yaml")
COPIED = ("flexkv_core", "tests", "pyproject.toml")
LIMIT_S = 120
"""A test run that takes longer hangs: the fault was noticed."""


@dataclass(frozen=True)
class Mutant:
    """One fault, and the tests that are to notice it."""

    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    same: str = ""
    """Why nothing can notice it."""

    def __str__(self) -> str:
        return f"{self.path}: {' '.join(self.new.split())}"


def mutants(content: str) -> Iterator[Mutant]:
    """Yield the mutants of a list."""
    for path, of_file in yaml.safe_load(content).items():
        tests = tuple(f"tests/flexkv_core/{test}" for test in of_file["tests"])
        for fields in of_file["mutants"]:
            yield Mutant(f"flexkv_core/{path}", tests=tests, **fields)


def verdict(root: Path, tests: Sequence[str], limit_s: float | None = LIMIT_S) -> str:
    """Run `tests` on the sources in `root`.

    Returns:
        "survives" if all of them pass, "noticed" if one fails, or what kept them from running.
    """
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider"]
    command += ["--hypothesis-seed=0", *tests]
    seen = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        status = subprocess.run(
            command, cwd=root, env=seen, capture_output=True, timeout=limit_s, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return "noticed"
    return {0: "survives", 1: "noticed"}.get(status, f"pytest ended with {status}")


def judge(root: Path, mutant: Mutant) -> str:
    """Plant a mutant in `root`, run its tests, and undo it; return what is wrong, or ""."""
    path = root / mutant.path
    content = path.read_text() if path.exists() else ""
    if content.count(mutant.old) != 1:
        return f"NOT FOUND {mutant.path} has {content.count(mutant.old)} times: {mutant.old}"
    begin_s = time.monotonic()
    path.write_text(content.replace(mutant.old, mutant.new))
    found = verdict(root, mutant.tests)
    path.write_text(content)
    print(f"{found:8} {time.monotonic() - begin_s:5.1f} s  {mutant}", flush=True)
    if found == ("survives" if mutant.same else "noticed"):
        return ""
    return f"{found.upper()}{', though listed as the same' if mutant.same else ''}: {mutant}"


def main(names: Sequence[str]) -> int:
    """Judge the mutants whose path contains one of `names`, or all."""
    chosen = [
        mutant
        for mutant in mutants(LIST.read_text())
        if not names or any(name in mutant.path for name in names)
    ]
    with tempfile.TemporaryDirectory(prefix="flexkv-mutants-") as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        if (found := verdict(root, tests, None)) != "survives":
            print(f"without a mutant: {found}")
            return 1
        problems = list(filter(None, [judge(root, mutant) for mutant in chosen]))
    print("\n".join([*problems, f"{len(chosen)} mutants, {len(problems)} problems"]))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
