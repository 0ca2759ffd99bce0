"""vLLM and SGLang, each on a directory of blocks, with one prompt; and a look at SGLang's pages.

Runs in the environment of vLLM; SGLang's has to be there, too.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / folder) for folder in ("vllm", "sglang")]

from engine_process import Ask, Completion, EngineProcess, random_tokens  # noqa: E402 see above
from sglang_process import PAGE_TOKENS, SglangCompletion, SglangProcess, flexkv  # noqa: E402

SGLANG_PYTHON = HERE.parents[1] / ".venv-sglang/bin/python"
PROMPT = random_tokens(1, 1000)
REUSED_TOKENS = len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS
MAX_TOKENS = 16
READY_LIMIT_S = 60.0
ROUNDING = 1e-3
"""The largest difference between two engines that compute the same KV or logits in float32.

Measured with both computing `PROMPT`, whose KV reaches 11 and whose logits reach 8: 2.0e-4 in KV
and 0.8e-4 in logits between vLLM and SGLang, 0 between SGLang and transformers."""


class Computed(NamedTuple):
    """What each engine made of the prompt when it knew nothing of it, and where that is stored."""

    by_vllm: Completion
    by_sglang: SglangCompletion
    sglang_kv: torch.Tensor
    """SGLang's own pages; see `pages_of`."""

    vllm_directory: Path
    sglang_directory: Path


class EnginePair:
    """Starts engines, one at a time, on the same model.

    Args:
        model: Folder of a model in float32.
        work: Empty folder, for the engines' own.
    """

    def __init__(self, model: Path, work: Path) -> None:
        self.model = model
        self._work = work
        self._num_started = 0

    @contextmanager
    def vllm(self, directory: Path, max_tp: int = 1, **more: Any) -> Iterator[EngineProcess]:
        """Start vLLM, and wait until it knows what the directory holds."""
        options = {
            "cpu_cache_gb": 0.25,
            "ssd_cache_gb": 0.5,
            "ssd_cache_dir": str(directory),
            "block_tokens": PAGE_TOKENS,
            "max_tp": max_tp,
        }
        connector = {"kv_connector": "flexkv", "kv_connector_extra_config": options}
        folder = self._folder("vllm")
        engine = EngineProcess(self.model, folder, connector, block_size=PAGE_TOKENS // 2, **more)
        with closing(engine):
            engine.run()
            yield engine

    @contextmanager
    def sglang(self, directory: Path, max_tp: int = 1) -> Iterator[SglangProcess]:
        """Start SGLang, and wait until it knows what the directory holds.

        It serves before that, and then stores nothing.
        """
        folder, storage = self._folder("sglang"), flexkv(directory, max_tp=max_tp)
        engine = SglangProcess(self.model, folder, storage, python=SGLANG_PYTHON)
        with closing(engine):
            _wait_for(folder / "engine.log", "connector.ready", "ssd.restored")
            yield engine

    def pages_of(self, engine: SglangProcess) -> torch.Tensor:
        """Return `[layer, K or V, head, token, content]` of SGLang's own pages of the prompt."""
        path = self._work / "kv.pt"
        engine.write_kv(PROMPT, path)
        kv: torch.Tensor = torch.load(path)
        return kv[..., :REUSED_TOKENS, :]

    def _folder(self, name: str) -> Path:
        self._num_started += 1
        folder = self._work / f"{self._num_started}-{name}"
        folder.mkdir()
        return folder


def _wait_for(log: Path, *events: str) -> None:
    """Wait until all events are in a log."""
    end_s = time.monotonic() + READY_LIMIT_S
    while not all(event in log.read_text() for event in events):
        assert time.monotonic() < end_s, f"{events} are not in {log}"
        time.sleep(0.05)


def serve(engine: EngineProcess, **more: Any) -> Completion:
    """Let vLLM serve the prompt; when it returns, all that was to be saved is on SSD."""
    (completion,) = engine.complete(Ask(prompt=PROMPT, max_tokens=MAX_TOKENS, **more))
    return completion


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two elements at the same place."""
    return (one - other).abs().max().item()
