"""Engines and models for the tests on real vLLM."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_core.identity.as_read import Judge, Mounts

if TYPE_CHECKING:
    from flexkv_connectors.vllm.scheduler import SchedulerHalf

HERE = Path(__file__).parent
sys.path.append(str(HERE))

import half_rig  # noqa: E402 the line above makes it importable
from engine_process import EngineProcess  # noqa: E402 the same
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


@pytest.fixture
def sources() -> None:
    """Skip the test where vLLM does not count hits by their source yet: before 0.32."""
    found = find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    if not (Path(found.origin).parent / "v1/metrics/cache_hit_source.py").exists():
        pytest.skip("this vLLM does not count hits by their source")


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


@pytest.fixture
def deployment(tmp_path: Path) -> VllmDeployment:
    """Return the deployment of an engine of two ranks, whose halves are tested without it."""
    return half_rig.deployment_in(tmp_path)


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    """Return the adapters of an engine, of which none is loaded."""
    return Adapters(bytes(32), tmp_path / "hub", Judge(0.0, Mounts("")))


@pytest.fixture
def half(deployment: VllmDeployment, adapters: Adapters) -> "SchedulerHalf":
    """Return the scheduler half of that engine."""
    return half_rig.half_of(deployment, adapters)


@pytest.fixture
def ready(deployment: VllmDeployment, adapters: Adapters) -> "SchedulerHalf":
    """Return the same once both ranks have told what they have: nothing."""
    return half_rig.ready_half_of(deployment, adapters)
