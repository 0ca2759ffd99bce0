"""What tests of several models do with a real engine."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from sglang_process import PAGE_TOKENS, SglangProcess

__all__ = ["STORED_LIMIT_S", "wait_until_restored", "wait_until_stored", "with_other_weights"]

STORED_LIMIT_S = 60


def wait_until_stored(
    engine: SglangProcess, prompt: Sequence[int], page_tokens: int = PAGE_TOKENS, **more: Any
) -> None:
    """Return when a whole prompt comes from storage after SGLang has dropped its own caches.

    Args:
        engine: Where it was computed.
        prompt: Token ids; the last one is computed always.
        page_tokens: Tokens of a page.
        more: As it was asked.
    """
    end_s = time.monotonic() + STORED_LIMIT_S
    while time.monotonic() < end_s:
        engine.flush()
        found = engine.complete(list(prompt), 1, **more).num_from_storage
        if found == (len(prompt) - 1) // page_tokens * page_tokens:
            return
    pytest.fail("not stored in time")


def wait_until_restored(engine: SglangProcess, num_storages: int = 1) -> None:
    """Return when all is found again that earlier engines have stored.

    Args:
        engine: Whose storage it is.
        num_storages: How many it has had by now, this one included.
    """
    end_s = time.monotonic() + STORED_LIMIT_S
    while engine.log_text().count("ssd.restored") < num_storages:
        engine.complete([1, 2, 3], 1)  # as long as one of its steps: it fills no page
        assert time.monotonic() < end_s, "not restored in time"


def with_other_weights(model: Path, folder: Path, changed: str) -> Path:
    """Return a copy of a model in which the weights named like `changed` are twice as large."""
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    weights = {
        name: 2 * weight if changed in name else weight for name, weight in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    return folder
