"""TensorRT-LLM's KV pools as page geometry.

Both cache managers keep K, and V, of one page and layer as one flat row, in the order that the
kernels of the default attention backend like: `[heads, tokens, head size]`. Source: `getKVLocalIdx`
in cpp/tensorrt_llm/kernels/kvCacheUtils.h @ 0ccf903. FlashInfer's backend has kept tokens outermost
in some versions, so no other backend is served (`settings`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexkv_connectors.session.deployment import PageShape
from flexkv_core.block.layout import PagePool, layer_runs
from flexkv_core.errors import LayoutError

if TYPE_CHECKING:
    import torch

__all__ = ["page_pool_of", "slabs_of_layout", "slabs_of_pool"]

_ROLES = ("key", "value")


def slabs_of_pool(
    pool: "torch.Tensor", shape: PageShape, num_layers: int, num_planes: int
) -> "list[torch.Tensor]":
    """Cut the pool of the first cache manager.

    Args:
        pool: `[blocks, layers, planes, flat]`.
        shape: Of one layer's page, as the model has it.
        num_layers: Layers of the model.
        num_planes: 2 for K and V, 1 for the latent of MLA.

    Returns:
        `[blocks, heads, tokens, content]` for each layer and plane, planes innermost.

    Raises:
        LayoutError: The pool is not of this model.
    """
    row_bytes = shape.num_heads * shape.page_tokens * shape.token_bytes // num_planes
    got = (*pool.shape[1:3], pool.shape[-1] * pool.element_size())
    if pool.dim() != 4 or got != (num_layers, num_planes, row_bytes) or pool.stride(3) != 1:  # noqa: PLR2004 the axes named
        msg = (
            f"TensorRT-LLM registered a pool {tuple(pool.shape)} of {pool.dtype} with strides "
            f"{pool.stride()}; expected [blocks, {num_layers} layers, {num_planes} planes, "
            f"{row_bytes} contiguous bytes]: this layout is not known, and nothing would be safe "
            "to save"
        )
        raise LayoutError(msg)
    heads = pool.unflatten(3, (shape.num_heads, shape.page_tokens, -1))
    return [heads[:, layer, plane] for layer in range(num_layers) for plane in range(num_planes)]


def slabs_of_layout(
    layout: Any,  # noqa: ANN401 the engine's KvCacheLayout
    shape: PageShape,
    num_layers: int,
    num_planes: int,
) -> "list[torch.Tensor]":
    """Cut the regions of the second cache manager; as `slabs_of_pool`, in bytes.

    Raises:
        LayoutError: There are several groups, windows, or contents other than K and V.
    """
    group = layout.groups[0]
    if len(layout.groups) != 1 or group.window_size is not None or group.replicated_regions:
        msg = (
            f"TensorRT-LLM keeps this model's KV in {len(layout.groups)} layer groups, some with "
            "windows or side caches, which FlexKV cannot restore yet: serve it without a connector"
        )
        raise LayoutError(msg)
    slabs: dict[tuple[int, str], torch.Tensor] = {}
    for region in group.regions:
        slabs |= _cut(region, shape, num_planes)
    layers = sorted(group.layer_ids)
    wanted = [(layer, role) for layer in layers for role in _ROLES[:num_planes]]
    if len(layers) != num_layers or sorted(slabs) != sorted(wanted):
        msg = (
            f"TensorRT-LLM's regions hold {sorted(slabs)} as (layer, role); expected "
            f"{', '.join(_ROLES[:num_planes])} of {num_layers} layers: this layout is not known"
        )
        raise LayoutError(msg)
    return [slabs[name] for name in wanted]


def page_pool_of(slabs: "Sequence[torch.Tensor]", num_planes: int) -> PagePool:
    """Describe slabs, planes innermost.

    Raises:
        LayoutError: They do not lie at equal distances.
    """
    first = slabs[0]
    keys, values = slabs[::num_planes], slabs[num_planes - 1 :: num_planes]
    distances = {v.data_ptr() - k.data_ptr() for k, v in zip(keys, values, strict=True)}
    layouts = {(tuple(slab.shape), slab.stride()) for slab in slabs}
    if len(distances) != 1 or len(layouts) != 1:
        msg = f"K and V of the layers lie {sorted(distances)} bytes apart: expected one distance"
        raise LayoutError(msg)
    item = first.element_size()
    page_stride, head_stride, token_stride = (step * item for step in first.stride()[:3])
    start = min(slab.data_ptr() for slab in slabs)
    end = max(slab.data_ptr() + _reach(slab) for slab in slabs)
    return PagePool(
        runs=layer_runs([key.data_ptr() for key in keys]),
        num_pages=first.shape[0],
        num_heads=first.shape[1],
        page_tokens=first.shape[2],
        num_planes=num_planes,
        plane_bytes=first.shape[3] * item,
        page_stride=page_stride,
        head_stride=head_stride,
        token_stride=token_stride,
        plane_stride=distances.pop(),
        memory_start=start,
        memory_bytes=end - start,
    )


def _cut(
    region: Any,  # noqa: ANN401 the engine's KvCacheRegion
    shape: PageShape,
    num_planes: int,
) -> "dict[tuple[int, str], torch.Tensor]":
    """Cut what repeats in every page of a region into its buffers, by layer and role."""
    row_bytes = shape.num_heads * shape.page_tokens * shape.token_bytes // num_planes
    if region.size != row_bytes * len(region.buffers) or any(
        b.expansion != 1 for b in region.buffers
    ):
        msg = (
            f"a region of TensorRT-LLM's cache has {region.size} bytes for {len(region.buffers)} "
            f"buffers; expected {row_bytes} each: this layout is not known"
        )
        raise LayoutError(msg)
    rows = region.as_tensor()
    return {
        (buffer.layer_id, buffer.role): rows[:, at * row_bytes : (at + 1) * row_bytes].unflatten(
            1, (shape.num_heads, shape.page_tokens, -1)
        )
        for at, buffer in enumerate(region.buffers)
    }


def _reach(slab: "torch.Tensor") -> int:
    """Return the bytes from the first to behind the last element."""
    steps = zip(slab.shape, slab.stride(), strict=True)
    num_elements = int(sum((size - 1) * stride for size, stride in steps)) + 1
    return num_elements * int(slab.element_size())
