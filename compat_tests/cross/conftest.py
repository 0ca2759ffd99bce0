"""What each engine has left of the prompt, on a directory of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from engine_pair import MAX_TOKENS, PROMPT, Computed, EnginePair, serve  # noqa: E402 see above


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the engines warn as they like: their warnings are not about us."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> EnginePair:
    """Return both engines, on a model in float32."""
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, HERE.parent / "models.py", "oracle", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return EnginePair(Path(done.stdout.strip()), tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def computed(engines: EnginePair, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    """Let each engine compute the prompt on a directory of its own."""
    folder = tmp_path_factory.mktemp("computed")
    from_vllm, from_sglang = folder / "vllm", folder / "sglang"
    with engines.vllm(from_vllm) as engine:
        by_vllm = serve(engine)
    with engines.sglang(from_sglang) as engine:
        by_sglang = engine.complete(PROMPT, MAX_TOKENS)
        sglang_kv = engines.pages_of(engine)
    return Computed(by_vllm, by_sglang, sglang_kv, from_vllm, from_sglang)
