"""The models that the demo serves: random weights, made on this machine, once."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from demo.process import DemoError

MODELS = {"demo": (), "windows": ("--disable-hybrid-kv-cache-manager",)}
"""With what vLLM is told, so that all layers keep all tokens and a CPU's session can hold them."""

BUILDER = Path(__file__).parents[1] / "compat_tests/models.py"
FLOAT32_BYTES = 4


def build_model(work: Path, name: str) -> Path:
    """Return the folder of one of `MODELS`; makes it if it is not there yet.

    Raises:
        DemoError: It cannot be made.
    """
    # Named after what makes it, so that another recipe never meets yesterday's weights.
    recipe = hashlib.sha256(BUILDER.read_bytes()).hexdigest()[:12]
    folder = work / f"models-{recipe}"
    if not (folder / name).exists():
        _run_builder(folder, work, name)
    return folder / name


def _run_builder(folder: Path, work: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BUILDER), name, str(folder)],
        env={**os.environ, "HF_HOME": str(work / "huggingface"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        msg = f"the model could not be made: {done.stderr.strip().rpartition(chr(10))[2]}"
        raise DemoError(msg)


def kv_token_bytes(model: Path) -> int:
    """Return the size of one token's keys and values over all layers, in float32."""
    config = json.loads((model / "config.json").read_text())
    per_head = 2 * config["head_dim"] * FLOAT32_BYTES
    return int(config["num_hidden_layers"] * config["num_key_value_heads"] * per_head)


def describe(model: Path) -> str:
    """Say how big the model is."""
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").stat().st_size
    size = f"{weights / 2 / 1e6:.0f} M parameters, random weights"
    return f"{config['architectures'][0]}, {size}, {config['num_hidden_layers']} layers"
