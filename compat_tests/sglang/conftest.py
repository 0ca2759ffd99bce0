"""Models and stand-ins for the tests on real SGLang."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "stand_ins")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sglang.srt.managers.cache_controller  # noqa: F401 what it warns of is not about us

from sglang_process import SglangProcess, safe_environment  # noqa: E402 the path is set above


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let SGLang warn as it likes: its warnings are not about us."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


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


@pytest.fixture
def start_ranks(model: Callable[[str], Path]) -> Iterator[Callable[..., list[Any]]]:
    """Return a function that starts controllers of one engine, after the end of those before."""
    with ExitStack() as running:

        def start(
            kind: Callable[..., Any],
            layout: str,
            storage: Mapping[str, Any],
            places: Sequence[Mapping[str, int]] = ({},),
            **more: Any,
        ) -> list[Any]:
            running.close()
            rigs = []
            for rank, place in enumerate(places):
                rigs.append(kind(model("oracle"), layout, storage, **place, **more))
                running.callback(rigs[-1].close)
                rigs[-1].fill(rank)
            return rigs

        yield start


@pytest.fixture
def start_engine(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., SglangProcess]]:
    """Return a function that starts engines, each after the end of the one before."""
    with ExitStack() as running:

        def start(folder: Path, storage: dict[str, Any], **arguments: Any) -> SglangProcess:
            running.close()
            engine = SglangProcess(folder, tmp_path_factory.mktemp("engine"), storage, **arguments)
            running.callback(engine.close)
            return engine

        yield start
