"""Where an engine is installed: the running environment, or one of its own for a version."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from compat_tests.contract.engines import ROOT, Engine
from compat_tests.contract.sources import CannotCheckError

__all__ = ["Environment", "environment_of", "running_environment"]

FOLDER = ROOT / ".work" / "venvs"
SETUP = ROOT / "scripts" / "setup_env.py"
STEPS = {"vllm": ("engine", "dev"), "sglang": ("sglang",)}
"""What `setup_env.py` does for an engine; the first step takes the version, and fails at once where
there is none."""


class Environment(NamedTuple):
    """An interpreter that has an engine and our tests' tools."""

    python: Path
    version: str
    """Of the engine."""


def running_environment(engine: Engine) -> Environment:
    """Return the interpreter that runs this.

    Raises:
        CannotCheckError: The engine is not installed in it.
    """
    for distribution in metadata.distributions():
        if distribution.name in engine.distributions:
            return Environment(Path(sys.executable), distribution.version.split("+")[0])
    msg = f"{engine.name} is not installed in {sys.prefix}: name a version"
    raise CannotCheckError(msg)


def environment_of(engine: Engine, version: str) -> Environment:
    """Return an environment with `version`; it is made where there is none yet: some minutes.

    Raises:
        CannotCheckError: It cannot be made, and why.
    """
    if engine.name not in STEPS:
        msg = f"{engine.name} does not run without a GPU"
        raise CannotCheckError(msg)
    folder = FOLDER / f"{engine.name}-{version}"
    environment = Environment(folder / "bin" / "python", version)
    ready = folder / ".is-ready"
    if not ready.exists():
        _set_up(engine, environment, folder)
        ready.touch()
    return environment


def _set_up(engine: Engine, environment: Environment, folder: Path) -> None:
    first, *others = STEPS[engine.name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run("sh", str(ROOT / "scripts" / "create_venv.sh"), str(folder), sys.executable)
    _run(str(environment.python), str(SETUP), first, environment.version)
    for step in others:
        _run(str(environment.python), str(SETUP), step)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["the environment cannot be made"])[-1]
        raise CannotCheckError(line.removeprefix("setup: "))
