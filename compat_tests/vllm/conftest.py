"""Engines and models for the tests on real vLLM."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from engine_process import EngineProcess  # noqa: E402 the line above makes it importable
from environment import restored_environment, safe_environment  # noqa: E402 the same


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let vLLM warn as it likes: its warnings are not about us."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Leave no variable of vLLM behind: the next test may start a process."""
    with restored_environment():
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a model to its folder."""
    folder = tmp_path_factory.getbasetemp() / "models"

    def build(name: str) -> Path:
        command = [sys.executable, HERE.parent / "models.py", name, folder]
        done = subprocess.run(
            command, env=safe_environment(), check=True, capture_output=True, text=True
        )
        return Path(done.stdout.strip())

    return build


@pytest.fixture(scope="module")
def start_engine(
    model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., EngineProcess]]:
    """Return a function that starts an engine, by model name; all end with the module."""
    with ExitStack() as running:

        def start(name: str, **arguments: Any) -> EngineProcess:
            engine = EngineProcess(model(name), tmp_path_factory.mktemp("engine"), **arguments)
            running.callback(engine.close)
            return engine

        yield start


@pytest.fixture(scope="session")
def identity() -> ModuleType:
    """Return the rig of engines that are never started; vLLM is loaded with it."""
    import identity_rig

    return identity_rig


@pytest.fixture(scope="session")
def offload() -> ModuleType:
    """Return the rig of vLLM's tiering manager; vLLM is loaded with it."""
    import offload_rig

    return offload_rig


@pytest.fixture(scope="session")
def config_of(identity: ModuleType, model: Callable[[str], Path]) -> Callable[..., Any]:
    """Return a function from the name of a model and vLLM's options to a configuration."""

    @cache
    def plain(name: str) -> Any:
        return identity.engine_config(model(name))

    def config_of(name: str = "oracle", **options: Any) -> Any:
        return identity.engine_config(model(name), **options) if options else plain(name)

    return config_of
