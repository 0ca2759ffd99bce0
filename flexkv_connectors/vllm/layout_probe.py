"""Writes marks through vLLM's views and reads them by our addresses: both must be the same place.

vLLM has changed the layout of its KV cache several times. A change that our geometry does not
follow refuses to start here, instead of saving what is later loaded as other tokens' KV.
"""

from collections.abc import Sequence

import torch

from flexkv_core.block.layout import PagePool
from flexkv_core.errors import LayoutError

__all__ = ["probe"]

_MARK_BYTES = 4


def probe(layers: Sequence[torch.Tensor], pool: PagePool) -> None:
    """Mark every token of each layer's last page, and look for the marks.

    Every byte is put back; some milliseconds. Thread: the model runner's, before the first step.

    Args:
        layers: As vLLM views them, `[B, H, N, C]` in model order.
        pool: What we made of them.

    Raises:
        LayoutError: There is another element where we expect one.
    """
    starts = (
        run.address + i * run.layer_stride for run in pool.runs for i in range(run.num_layers)
    )
    for number, (layer, start) in enumerate(zip(layers, starts, strict=True)):
        # The last page: an error in any stride puts it elsewhere.
        seen = layer.view(torch.uint8)[-1, ..., :_MARK_BYTES]
        before, marks = seen.clone(), _marks(seen, number)
        seen.copy_(marks)
        is_equal = torch.equal(_by_address(layer, start, pool)[-1], marks)
        seen.copy_(before)
        if not is_equal:
            msg = (
                f"layer {number} of vLLM's KV cache, {tuple(layer.shape)} with strides "
                f"{layer.stride()}, has other elements at {start:#x} than its shape says: this "
                "layout is not known and nothing would be safe to save: please report it with "
                "your vLLM version and attention backend"
            )
            raise LayoutError(msg)


def _marks(like: torch.Tensor, layer: int) -> torch.Tensor:
    """Return a number for every token and head, as bytes; no other layer has the same."""
    num_marks = like.numel() // _MARK_BYTES
    first = layer * num_marks + 1
    marks = torch.arange(first, first + num_marks, dtype=torch.int32, device=like.device)
    return marks.view(torch.uint8).view(like.shape)


def _by_address(layer: torch.Tensor, start: int, pool: PagePool) -> torch.Tensor:
    """View the first bytes of every token, `[B, H, N, 4]`, by our numbers alone."""
    storage = layer.untyped_storage()
    return layer.new_empty(0, dtype=torch.uint8).set_(
        storage,
        start - storage.data_ptr(),
        (pool.num_pages, pool.num_heads, pool.page_tokens, _MARK_BYTES),
        (pool.page_stride, pool.head_stride, pool.token_stride, 1),
    )
