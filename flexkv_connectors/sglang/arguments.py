"""The arguments of SGLang's calls, as a block store wants them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flexkv_core.block.types import BlockKey

if TYPE_CHECKING:
    import torch

__all__ = ["keys_of", "page_ids_of"]


def keys_of(hashes: Iterable[str]) -> list[BlockKey]:
    """Return the keys that SGLang spells in hex."""
    return [BlockKey(bytes.fromhex(text)) for text in hashes]


def page_ids_of(
    host_indices: "torch.Tensor | None", page_tokens: int, num_keys: int
) -> list[int] | None:
    """Return one page id for each key.

    Args:
        host_indices: Indices of token slots in the host pool, `[num_keys * page_tokens]` int64,
            page after page; None where SGLang names none.
        page_tokens: Tokens in a page.
        num_keys: Keys of the call.

    Returns:
        None if these are not whole pages, one for each key.
    """
    if host_indices is None or len(host_indices) != num_keys * page_tokens:
        return None
    starts: list[int] = host_indices[::page_tokens].tolist()
    is_whole = not any(start % page_tokens for start in starts)
    return [start // page_tokens for start in starts] if is_whole else None
