"""Whether the weights that an engine serves can be told from all others."""

import re
from pathlib import Path

from flexkv_core.model_identity import identify_model

__all__ = ["FROM_THE_CHECKPOINT", "has_version"]

FROM_THE_CHECKPOINT = frozenset(
    {
        "auto",
        "fastsafetensors",
        "hf",
        "instanttensor",
        "mistral",
        "npcache",
        "pt",
        "runai_streamer",
        "safetensors",
    }
)
"""Load formats that read weights from where the model's configuration is; vLLM and SGLang share
the names."""

_EXACT = re.compile(r"\Alocal:|@[0-9a-f]{40}\Z")
"""An identity that no other weights can get."""


def has_version(model: str, revision: str | None, hub_cache: Path) -> bool:
    """Tell whether a model is known by its content or its commit, not just by a branch."""
    if Path(model).exists():
        return True
    return _EXACT.search(identify_model(model, revision, hub_cache=hub_cache)) is not None
