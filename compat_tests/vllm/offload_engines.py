"""What the tests of engines with FlexKV below vLLM's own offloading share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import vllm
from engine_process import Ask, Completion, EngineProcess, random_tokens

PROMPTS = [random_tokens(seed, 1350) for seed in (1, 2)]

ON_CPU = {"spec_name": "OffloadingOnCpu", "spec_module_path": "offloading_on_cpu"}
"""Options that have vLLM offload KV although it is in CPU memory."""

VERSION = vllm.__version_tuple__[:2]
KEEPS_ROWS = VERSION >= (0, 29)
"""Whether there is an SSD tier."""

COUNTS_CHILDREN = VERSION >= (0, 30)
"""Whether MultiConnector can count what vLLM's offloading does, where all is one process."""

SERVES_RANKS = VERSION >= (0, 32)
"""Whether engines of several ranks are served."""

FAILS = {"sinks": VERSION < (0, 31), "state": (0, 29) <= VERSION < (0, 32)}
"""Models that vLLM itself fails with: sinks in float32; convolutions on a CPU with AVX512-BF16."""


def connector_on(directory: Path, **options: Any) -> dict[str, Any]:
    """Return the connector with its SSD tier in `directory`."""
    return {
        "kv_connector": "OffloadGlassConnector",
        "kv_connector_module_path": "offload_glass",
        "kv_connector_extra_config": {
            "cpu_cache_gb": 0.25,
            "ssd_cache_gb": 1,
            "ssd_cache_dir": str(directory),
            "promotion_timeout_s": 60,
        }
        | ON_CPU
        | options,
    }


def serve(engine: EngineProcess) -> list[Completion]:
    """Serve the prompts one after the other."""
    return engine.complete_each(Ask(prompt=prompt) for prompt in PROMPTS)


def tokens_of(completions: Iterable[Completion]) -> list[list[int]]:
    """Return the tokens of answers."""
    return [completion.tokens for completion in completions]


def hits_of(completions: Iterable[Completion]) -> list[int]:
    """Return how many tokens of each prompt were not computed."""
    return [completion.num_cached_tokens for completion in completions]


def flip_all(directory: Path) -> None:
    """Change a byte in every page of every slab; no engine may be running."""
    for slab in directory.rglob("*.slab"):
        content = bytearray(slab.read_bytes())
        for at in range(2048, len(content), 4096):
            content[at] ^= 1
        with slab.open("r+b") as file:
            file.write(content)
