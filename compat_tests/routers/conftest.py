"""Routers that are told of caches: what they are told on is vLLM's real scheduler with FlexKV."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flexkv_connectors.vllm.prefill_speed import PrefillSpeed

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "vllm")]

from environment import restored_environment, safe_environment  # noqa: E402 see above

if TYPE_CHECKING:
    from indexer import Indexer, Router
    from routed_engine import RoutedEngine


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


@pytest.fixture
def router(indexer: "Indexer") -> "Router":
    """Return what the engines of a test are followed by."""
    return indexer


@pytest.fixture
def start(router: "Router", base: Any) -> "Iterator[Callable[..., RoutedEngine]]":
    """Return a function that starts an engine with room for about 1.4 prompts of its own."""
    from routed_engine import RoutedEngine
    from simulated_shape import Shape

    engines = []

    def start(
        page_tokens: int = 16,
        block_tokens: int = 64,
        cpu_blocks: int = 64,
        model: str = "",
        **options: Any,
    ) -> "RoutedEngine":
        shape = Shape(
            num_pages=576 // page_tokens + 1,
            max_batched_tokens=512,
            layout="LBHNC",  # the only one with pages of 32 tokens and more on a CPU
            page_tokens=page_tokens,
            block_tokens=block_tokens,
            cpu_cache_gb=cpu_blocks * block_tokens * 64 / 2**30,
            options=options,
        )
        engines.append(RoutedEngine(router, base, shape, model))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def start_with_ssd(
    start: "Callable[..., RoutedEngine]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Callable[..., RoutedEngine]":
    """Return a function that starts one with an SSD tier, and as much host memory as vLLM has.

    It waits for SSD as if it computed for ever: a busy machine changes nothing.
    """
    monkeypatch.setattr(PrefillSpeed, "seconds_for", lambda *_: 1e9)

    def start_with_ssd(block_tokens: int = 64, **more: Any) -> "RoutedEngine":
        ssd = {"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path), "promotion_timeout_s": 60}
        shape = {"block_tokens": block_tokens, "cpu_blocks": 512 // block_tokens}
        return start(**shape | ssd | more)

    return start_with_ssd
