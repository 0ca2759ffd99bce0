"""Show one cache for two engines: `python -m demo.cross`. Exits with 1 if it is not true.

vLLM computes a prompt and SGLang continues from what vLLM has stored, then the other way round.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMPAT_TESTS = ROOT / "compat_tests"
for folder in ("vllm", "sglang"):
    sys.path.append(str(COMPAT_TESTS / folder))

from engine_process import Ask, EngineProcess, random_tokens  # noqa: E402 see the lines above
from sglang_process import PAGE_TOKENS, SglangProcess, flexkv  # noqa: E402 the same

WORK = ROOT / ".work/cross"
SGLANG_PYTHON = ROOT / ".venv-sglang/bin/python"
PROMPT_TOKENS = 3000
REUSED_TOKENS = PROMPT_TOKENS // PAGE_TOKENS * PAGE_TOKENS
CONTINUATION = 16
HEADER = f"{'computed by':12}{'continued by':14}{'tokens reused':>16}{'first token':>14}{'cold':>9}"


class Shown(NamedTuple):
    """What one engine did with the prompt."""

    num_reused: int
    ttft_s: float
    tokens: list[int]


AskEngine = Callable[[Path, Path, Path], Shown]


def main() -> int:
    """Run the demo; returns the exit status."""
    WORK.mkdir(parents=True, exist_ok=True)
    model = build_model()
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        rows = {name: show(Path(folder), model, name) for name in ENGINES}
        crossed = {
            reader: show(Path(folder), model, reader, writer)
            for writer, reader in (("vLLM", "SGLang"), ("SGLang", "vLLM"))
        }
    print(f"\n{HEADER}")
    for reader, writer in (("SGLang", "vLLM"), ("vLLM", "SGLang")):
        seen, cold = crossed[reader], rows[reader]
        reused = f"{seen.num_reused} of {PROMPT_TOKENS}"
        times = f"{seen.ttft_s:>11.3f} s{cold.ttft_s:>7.3f} s"
        print(f"{writer:12}{reader:14}{reused:>16}{times}")
    return int(not all(is_true(crossed[reader], rows[reader]) for reader in ENGINES))


def is_true(seen: Shown, cold: Shown) -> bool:
    """Tell whether an engine continued from the other's blocks as it does from its own."""
    for what, found, expected in (
        ("tokens reused cold", cold.num_reused, 0),
        ("tokens reused", seen.num_reused, REUSED_TOKENS),
        ("continuation", seen.tokens, cold.tokens),
    ):
        if found != expected:
            print(f"demo: {what} {found}, expected {expected}", file=sys.stderr)
            return False
    return True


def build_model() -> Path:
    """Return the folder of a model with random weights in float32."""
    command = [sys.executable, str(COMPAT_TESTS / "models.py"), "oracle", str(WORK / "models")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def show(work: Path, model: Path, name: str, writer: str | None = None) -> Shown:
    """Start an engine on the directory of `writer`, or its own, and ask the prompt."""
    print(f"{name} {'computes' if writer is None else f'reads what {writer} has stored'} ...")
    logs = Path(tempfile.mkdtemp(dir=work))
    return ENGINES[name](model, work / (writer or name), logs)


def ask_vllm(model: Path, directory: Path, logs: Path) -> Shown:
    """Ask a new vLLM."""
    options = {"ssd_cache_gb": 0.5, "ssd_cache_dir": str(directory), "block_tokens": PAGE_TOKENS}
    connector = {
        "kv_connector": "flexkv",
        "kv_connector_extra_config": options | {"cpu_cache_gb": 0.25},
    }
    engine = EngineProcess(model, logs, connector, block_size=PAGE_TOKENS // 2)
    with closing(engine):
        engine.complete(Ask(prompt=random_tokens(2, PROMPT_TOKENS), max_tokens=1))  # warm up
        prompt = random_tokens(1, PROMPT_TOKENS)
        begin_s = time.perf_counter()
        request_id = engine.add(Ask(prompt=prompt, max_tokens=1))
        while request_id not in engine.step():
            pass
        ttft_s = time.perf_counter() - begin_s
        num_reused = engine.run()[request_id].num_cached_tokens
        (whole,) = engine.complete(Ask(prompt=prompt, max_tokens=CONTINUATION))
    return Shown(num_reused, ttft_s, whole.tokens)


def ask_sglang(model: Path, directory: Path, logs: Path) -> Shown:
    """Ask a new SGLang."""
    engine = SglangProcess(model, logs, flexkv(directory), python=SGLANG_PYTHON)
    with closing(engine):
        engine.complete(random_tokens(2, PROMPT_TOKENS), 1)  # warm up
        prompt = random_tokens(1, PROMPT_TOKENS)
        first = engine.complete(prompt, 1)
        whole = engine.complete(prompt, CONTINUATION)
    return Shown(first.num_cached_tokens, first.seconds, whole.tokens)


ENGINES: dict[str, AskEngine] = {"vLLM": ask_vllm, "SGLang": ask_sglang}

if __name__ == "__main__":
    sys.exit(main())
