"""What vLLM has saved, SGLang loads, and the other way round: from one directory, no copy between.

Runs in the environment of vLLM; SGLang's has to be there, too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in ("vllm", "sglang"):
    sys.path.append(str(HERE.parent / folder))

from engine_process import Ask, EngineProcess, random_tokens  # noqa: E402 see the lines above
from sglang_process import PAGE_TOKENS, SglangProcess, flexkv  # noqa: E402 the same

SGLANG_PYTHON = HERE.parents[1] / ".venv-sglang/bin/python"
PROMPT = random_tokens(1, 1000)
REUSED_TOKENS = len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS
MAX_TOKENS = 16

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, HERE.parent / "models.py", "oracle", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def vllm(model, tmp_path_factory):
    """Return a function: what vLLM answers on a directory; when it returns, all is on SSD."""

    def ask(directory):
        connector = {
            "kv_connector": "flexkv",
            "kv_connector_extra_config": {
                "cpu_cache_gb": 0.25,
                "ssd_cache_gb": 0.5,
                "ssd_cache_dir": str(directory),
                "block_tokens": PAGE_TOKENS,
            },
        }
        folder = tmp_path_factory.mktemp("vllm")
        engine = EngineProcess(model, folder, connector, block_size=PAGE_TOKENS // 2)
        try:
            engine.run()
            (answer,) = engine.complete(Ask(prompt=PROMPT, max_tokens=MAX_TOKENS))
        finally:
            engine.close()
        return answer

    return ask


@pytest.fixture(scope="module")
def sglang(model, tmp_path_factory):
    """Return a function: what SGLang answers on a directory."""

    def ask(directory):
        folder = tmp_path_factory.mktemp("sglang")
        engine = SglangProcess(model, folder, flexkv(directory), python=SGLANG_PYTHON)
        try:
            return engine.complete(PROMPT, MAX_TOKENS)
        finally:
            engine.close()

    return ask


def test_each_engine_continues_from_what_the_other_computed(vllm, sglang, tmp_path):
    from_vllm, from_sglang = tmp_path / "from-vllm", tmp_path / "from-sglang"
    cold_vllm, cold_sglang = vllm(from_vllm), sglang(from_sglang)
    assert (cold_vllm.num_cached_tokens, cold_sglang.num_cached_tokens) == (0, 0)

    warm_sglang = sglang(from_vllm)
    assert warm_sglang.num_from_storage == REUSED_TOKENS
    assert warm_sglang.tokens == cold_sglang.tokens

    warm_vllm = vllm(from_sglang)
    assert warm_vllm.num_cached_tokens == REUSED_TOKENS
    assert warm_vllm.tokens == cold_vllm.tokens
