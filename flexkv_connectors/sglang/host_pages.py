"""HiCache's host pool as page geometry: the only place that knows SGLang's layouts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flexkv_core.block.layout import LayerRun, PagePool
from flexkv_core.errors import LayoutError

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["is_of_special_format", "page_pool_of"]

_PLANES: Mapping[str, int] = {"MHATokenToKVPoolHost": 2, "MLATokenToKVPoolHost": 1}
"""Pools whose one tensor holds the KV of full attention, and how many planes it begins with."""

_AXES: Mapping[str, str] = {
    "layer_first": "LTHC",
    "page_first": "TLHC",
    "page_first_direct": "BLNHC",
    "page_head": "BHNLC",
}
"""Axes behind the planes, outermost first: L layer, B page, N token in page, T = B and N in one,
H head, C content."""


def page_pool_of(pool: "HostKVCache") -> PagePool:
    """Describe the pages of a host pool; a page begins at a multiple of `page_size` tokens.

    Raises:
        LayoutError: The pool is of a kind or a layout that we do not know.
    """
    num_planes, axes = _PLANES.get(type(pool).__name__), _AXES.get(pool.layout)
    if num_planes is None or axes is None or is_of_special_format(pool):
        msg = (
            f"SGLang's host memory is a {type(pool).__name__} in layout {pool.layout!r}, which "
            f"FlexKV cannot read: set --hicache-mem-layout to one of {', '.join(_AXES)}, or serve "
            "this model without FlexKV"
        )
        raise LayoutError(msg)
    tensor, content = pool.kv_buffer, "P" * (num_planes - 1) + axes
    element_bytes = tensor.dtype.itemsize
    sizes = dict(zip(content, tensor.shape, strict=True))
    strides = {
        axis: stride * element_bytes for axis, stride in zip(content, tensor.stride(), strict=True)
    }
    token_stride = strides["T"] if "T" in strides else strides["N"]
    return PagePool(
        runs=(LayerRun(tensor.data_ptr(), sizes["L"], strides["L"]),),
        num_pages=pool.page_num,
        num_heads=sizes["H"],
        page_tokens=pool.page_size,
        num_planes=num_planes,
        plane_bytes=sizes["C"] * strides["C"],
        page_stride=strides.get("B", pool.page_size * token_stride),
        head_stride=strides["H"],
        token_stride=token_stride,
        plane_stride=strides.get("P", 0),
        memory_start=tensor.data_ptr(),
        memory_bytes=tensor.nbytes,
    )


def is_of_special_format(pool: "HostKVCache") -> bool:
    """Tell whether its bytes are not plain KV; before 0.5.22 such pools had other classes."""
    tag = getattr(pool, "storage_format_tag", None)
    return bool(tag or getattr(pool, "stores_page_envelope", False))
