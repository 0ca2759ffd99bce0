"""What SGLang passes in a call, as stores want it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flexkv_core.types import BlockKey

if TYPE_CHECKING:
    import torch

__all__ = ["keys_of", "page_ids_of"]


def keys_of(hashes: Iterable[str]) -> list[BlockKey]:
    """Return the keys that SGLang spells in hex."""
    return [BlockKey(bytes.fromhex(text)) for text in hashes]


def page_ids_of(host_indices: "torch.Tensor", page_tokens: int) -> list[int]:
    """Return the pages that begin at every `page_tokens`th of the indices of a pool."""
    page_ids: list[int] = (host_indices[::page_tokens] // page_tokens).tolist()
    return page_ids
