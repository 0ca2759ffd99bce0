"""vLLM's registered KV tensors as a `PagePool`.

From 0.28 on a layer's tensor is logically `[B, H, N, C]` whatever the memory order, C packing K
and V of one token and head (MLA: the latent); which axis order it has in memory is in its strides.
`B` counts kernel blocks: a multiple of vLLM's own blocks where a kernel wants smaller ones.
Source: `create_kv_cache_views` in vllm/v1/kv_cache_interface.py @ 0.32.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.session.deployment import PageShape
from flexkv_core.block.layout import PagePool, layer_runs
from flexkv_core.errors import LayoutError

if TYPE_CHECKING:
    import torch

__all__ = ["layers_of", "page_pool"]


def page_pool(kv_caches: Mapping[str, "torch.Tensor"], declared: PageShape) -> PagePool:
    """Describe one rank's KV tensors.

    Args:
        kv_caches: Layer name to tensor `[B, H, N, C]` of the cache's dtype, any strides with C
            innermost; layers that share one tensor are counted once.
        declared: From the cache specification; `page_tokens` is that of vLLM's block, and N may
            be a divisor of it.

    Returns:
        The pool in kernel pages, layers in model order.

    Raises:
        LayoutError: A tensor contradicts what was declared, or the layers differ among themselves.
    """
    tensors = layers_of(kv_caches)
    first = tensors[0]
    for tensor in tensors:
        _require_declared(tensor, declared)
        if tensor.shape != first.shape or tensor.stride() != first.stride():
            msg = (
                f"layers have different geometries: {tuple(tensor.shape)} {tensor.stride()} and "
                f"{tuple(first.shape)} {first.stride()}: this mixture is not supported"
            )
            raise LayoutError(msg)
    item = first.element_size()
    page_stride, head_stride, token_stride = (step * item for step in first.stride()[:3])
    start, end = _allocation(tensors)
    return PagePool(
        runs=layer_runs([tensor.data_ptr() for tensor in tensors]),
        num_pages=first.shape[0],
        num_heads=first.shape[1],
        page_tokens=first.shape[2],
        num_planes=1,
        plane_bytes=first.shape[3] * item,
        page_stride=page_stride,
        head_stride=head_stride,
        token_stride=token_stride,
        plane_stride=0,
        memory_start=start,
        memory_bytes=end - start,
    )


def layers_of(kv_caches: Mapping[str, "torch.Tensor"]) -> list["torch.Tensor"]:
    """Return each layer's `[B, H, N, C]` in model order; layers that share one count once."""
    return _distinct([_four_axes(kv_caches[name]) for name in _model_order(kv_caches)])


def _model_order(names: Mapping[str, object]) -> list[str]:
    """Sort "model.layers.10.attn" after "model.layers.9.attn": engines agree on this order."""

    def by_numbers(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

    return sorted(names, key=by_numbers)


def _four_axes(tensor: "torch.Tensor") -> "torch.Tensor":
    """Give `[B, N, C]`, as some MLA backends register it, its one head."""
    return tensor.unsqueeze(1) if tensor.dim() == 3 else tensor  # noqa: PLR2004 the axes named


def _distinct(tensors: Sequence["torch.Tensor"]) -> list["torch.Tensor"]:
    """Drop layers that share the KV of another layer: they are the same bytes."""
    first_seen: dict[object, torch.Tensor] = {}
    for tensor in tensors:
        first_seen.setdefault((tensor.data_ptr(), tensor.stride()), tensor)
    return list(first_seen.values())


def _require_declared(tensor: "torch.Tensor", declared: PageShape) -> None:
    got = tuple(tensor.shape[1:]) if tensor.dim() == 4 else ()  # noqa: PLR2004 [B, H, N, C]
    matches = (
        len(got) == 3  # noqa: PLR2004
        and got[0] == declared.num_heads
        and declared.page_tokens % got[1] == 0
        and got[2] * tensor.element_size() == declared.token_bytes
        and tensor.stride(3) == 1
    )
    if not matches:
        msg = (
            f"vLLM registered a KV tensor {tuple(tensor.shape)} of {tensor.dtype} with strides "
            f"{tensor.stride()}; expected [blocks, {declared.num_heads} heads, a divisor of "
            f"{declared.page_tokens} tokens, {declared.token_bytes} contiguous bytes]: this layout "
            "is not known and nothing would be safe to save: please report it with your vLLM "
            "version and attention backend"
        )
        raise LayoutError(msg)


def _allocation(tensors: Sequence["torch.Tensor"]) -> tuple[int, int]:
    """Return the address range that holds all tensors' storages."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    ends = [storage.data_ptr() + storage.nbytes() for storage in storages]
    return min(storage.data_ptr() for storage in storages), max(ends)
