"""The levels that need an installed engine: which tests they are, and how they are run.

`installed`: our connector under the engine's own scheduler or controller, in scripted exchanges,
one of them with a failed load; no engine is started. `layout`: our geometry against the engine's
own views of memory. `live`: engines are started and asked.
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from compat_tests.contract.check import BROKEN, FITS
from compat_tests.contract.engines import ROOT, Engine
from compat_tests.contract.records import order
from compat_tests.contract.sources import CannotCheckError
from compat_tests.environments import Environment

__all__ = ["INSTALLED", "LAYOUT", "LEVELS", "LIVE", "files_of", "require_rig", "run", "state_of"]

INSTALLED, LAYOUT, LIVE = LEVELS = ("installed", "layout", "live")

HERE = Path(__file__).parent
NAMED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "vllm": {
        INSTALLED: (
            "test_fakes.py",
            "test_frames.py",
            "test_scheduler_cases.py",
            "test_scheduler_contract.py",
            "test_scheduler_gpu.py",
            "test_worker_gpu.py",
            "test_scheduler_half.py",
            "test_scheduler_adapters.py",
            "test_identity.py",
            "test_columns.py",
            "test_why_not.py",
            "test_why_no_ssd.py",
        ),
        LAYOUT: ("test_cpu_pages.py", "test_kv_caches.py", "test_layout_probe.py"),
    },
    "sglang": {INSTALLED: ("test_controller.py",), LAYOUT: ("test_pages.py",)},
}
"""By engine and level; every other test file of an engine is `live`."""

SINCE: Mapping[str, str] = {"vllm": "0.30", "sglang": "0.5.23"}
"""The rigs of the levels without an engine use what there was not before; `live` runs on any."""

MAX_S = {INSTALLED: 3600, LAYOUT: 1800, LIVE: 2 * 3600}
PASSED, FAILED, INTERRUPTED = 0, 1, 2
"""Exit statuses of pytest; a test file that cannot be imported interrupts it."""


def files_of(engine: Engine, level: str, only: Sequence[str] = ()) -> list[Path]:
    """Return the test files of a level.

    Args:
        engine: Whose.
        level: One of `LEVELS`.
        only: File names, or patterns like `test_offload_*`; empty: all of the level.

    Raises:
        CannotCheckError: There are none.
    """
    named = NAMED.get(engine.name, {})
    folder = HERE / engine.name
    if level == LIVE:
        others = {name for names in named.values() for name in names}
        files = [path for path in sorted(folder.glob("test_*.py")) if path.name not in others]
    else:
        files = [folder / name for name in named.get(level, ())]
    if only:
        files = [path for path in files if any(path.match(name) for name in only)]
    if not files:
        msg = f"level {level} of {engine.name} has no test file {' or '.join(only)}".rstrip()
        raise CannotCheckError(msg)
    return files


def require_rig(engine: Engine, level: str, version: str) -> None:
    """Refuse a version that the tests of a level are not written for.

    Raises:
        CannotCheckError: It is older.
    """
    since = SINCE.get(engine.name, version)
    if level != LIVE and order(version) < order(since):
        msg = f"level {level} is written for {engine.name} {since} and later: try {LIVE}"
        raise CannotCheckError(msg)


def run(environment: Environment, level: str, files: Sequence[Path]) -> int:
    """Run test files in an environment; return the exit status of this program.

    Raises:
        CannotCheckError: The tests did not run, or not to their end.
    """
    # From outside the checkout, as users run engines: nothing is found by accident.
    with tempfile.TemporaryDirectory() as outside:
        command = [
            "env",
            "PYTHONSAFEPATH=1",
            str(environment.python),
            "-m",
            "pytest",
            "--quiet",
            f"--rootdir={ROOT}",
        ]
        command += [f"--config-file={ROOT / 'pyproject.toml'}", *map(str, files)]
        try:
            done = subprocess.run(command, check=False, cwd=outside, timeout=MAX_S[level])
        except subprocess.TimeoutExpired as error:
            msg = f"the tests did not end within {MAX_S[level]} s"
            raise CannotCheckError(msg) from error
    if done.returncode not in (PASSED, FAILED, INTERRUPTED):
        msg = f"pytest did not run the tests: its exit status is {done.returncode}"
        raise CannotCheckError(msg)
    return FITS if done.returncode == PASSED else BROKEN


def state_of(status: int, num_run: int, num_files: int) -> str:
    """Return what the matrix says of a run."""
    said = "passed" if status == FITS else "failed"
    return said if num_run == num_files else f"{said} ({num_run} of {num_files} files)"
