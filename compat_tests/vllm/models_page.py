"""Prints docs/models.md, for `make models`."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from architectures import ARCHITECTURES, SOURCES
from environment import HERE, safe_environment

SERVED = "served"

_HEAD = """\
# Models

What vLLM 0.32 keeps of models that people serve, and whether FlexKV takes it. `make models` writes
this page: vLLM itself builds each model's class from facts of its config.json, without weights and
on no device, and groups what it keeps. **No model was run for it**: what ran is in the
[README](../README.md#what-is-supported).

- **On a CPU**: by `flexkv-session`, on a CPU without AMX.
- **Below vLLM's offloading**: by `flexkv-offload`, on a GPU of the Hopper generation, which is
  pretended: of vLLM's GPU build, what computes is stood in for, and what decides sizes is real.
  Those with MLA or an indexer never ran: the name `flexkv` does not serve them.
- **Bytes a token**: of layers that see the whole context, in bfloat16, or in what the model
  prescribes. Windows and states take a bounded size more.
- **A block**: one row of vLLM's host memory, and how many tokens it is for. A model with several
  groups of layers has a row for each. What does not fill a block is not kept.
"""

_STARTS = """
## Starts

The same for other starts, with Qwen3-8B unless it says otherwise.
"""


_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # with it, vLLM takes Triton without a driver
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def describe(platform: str, degrees: str, *names: str) -> list[dict[str, Any]]:
    """Return what the child says of `platform`."""
    # vLLM remembers what it learned of a class: not of those that are pretended.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, HERE / "architecture_child.py", platform, degrees, *names],
            env=safe_environment() | _ENVIRONMENT | {"VLLM_CACHE_ROOT": folder},
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def render(on_cpu: list[dict[str, Any]], on_gpu: list[dict[str, Any]]) -> str:
    """Return the page."""
    return "\n".join(
        [_HEAD, *_models(on_cpu, on_gpu), _STARTS, *_starts(on_cpu, on_gpu), *_sources()]
    )


def _models(on_cpu: list[dict[str, Any]], on_gpu: list[dict[str, Any]]) -> list[str]:
    sessions = {row["name"]: row for row in on_cpu if "name" in row}
    rows = [
        (
            row["name"],
            ", ".join(row["kinds"]),
            f"{row['token_bytes']:,}",
            f"{row['row_bytes'] / 2**20:.1f} MiB, {_block_tokens(row)}",
            _verdict(sessions[row["name"]]["refusal"]),
            _verdict(row["refusal"]),
        )
        for row in on_gpu
        if row.get("degree") == 1
    ]
    head = ("model", "what its layers keep", "bytes a token", "a block", "on a CPU")
    return _table((*head, "below vLLM's offloading"), rows)


def _starts(on_cpu: list[dict[str, Any]], on_gpu: list[dict[str, Any]]) -> list[str]:
    sessions = {row["start"]: row["session"] for row in on_cpu if "start" in row}
    rows = [
        (row["start"], _verdict(sessions[row["start"]]), _verdict(row["offloading"]))
        for row in on_gpu
        if "start" in row
    ]
    return _table(("start", "`flexkv-session`", "`flexkv-offload`"), rows)


def _sources() -> list[str]:
    lines = ["", "## Where the facts are from", ""]
    for source, words in SOURCES.items():
        names = [name for name, facts in ARCHITECTURES.items() if facts.source == source]
        lines.append(f"- {words}: {', '.join(names)}")
    return [*lines, ""]


def _block_tokens(row: dict[str, Any]) -> str:
    return " or ".join(map(str, row["block_tokens"]))


def _verdict(refusal: str | None) -> str:
    return refusal or SERVED


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


if __name__ == "__main__":
    print(render(describe("cpu", "1"), describe("gpu", "1")), end="")
