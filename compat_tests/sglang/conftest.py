"""Models and stand-ins for the tests on real SGLang."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "stand_ins")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sglang.srt.managers.cache_controller  # noqa: F401 what it warns of is not about us


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
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE / "stand_ins")}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return Path(done.stdout.strip())

    return build
