"""Routers that are told of caches: what they are told on is vLLM's real scheduler with FlexKV."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "vllm")]

from environment import restored_environment, safe_environment  # noqa: E402 see above

if TYPE_CHECKING:
    from indexer import Indexer


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
def indexer(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Indexer]":
    """Return a running indexer."""
    from indexer import Indexer

    indexer = Indexer(tmp_path_factory.mktemp("indexer"))
    yield indexer
    indexer.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the configuration of an engine with our connector."""
    from simulated_shape import base_config

    command = [sys.executable, HERE.parent / "models.py", "oracle", tmp_path_factory.mktemp("m")]
    done = subprocess.run(
        command, env=safe_environment(), check=True, capture_output=True, text=True
    )
    module = "flexkv_connectors.vllm.connector"
    connector = {"kv_connector": "FlexKVConnector", "kv_connector_module_path": module}
    return base_config(Path(done.stdout.strip()), connector)
