"""Engine pages of any shape in plain memory, and the slowest possible reference for copying them.

Axes are one letter each, outermost first, as in vLLM: L layer, B page, H KV head, N token in page,
C bytes of one plane; and P for the planes K and V where they are apart. `"LBHNC"` is vLLM's packed
head-major pool, `"PLBNHC"` a tensor `[2, L, B, N, H, D]`.
"""

import ctypes
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexkv_core.block.layout import LayerRun, PagePool

__all__ = ["POISON", "Bytes", "make_pages", "read_block", "write_page"]

POISON = 0xDB
"""What memory is filled with that a test expects to stay as it is."""

Bytes = NDArray[np.uint8]


def make_pages(
    axes: str, *, layer_runs: Sequence[int] | None = None, padding: int = 0, **sizes: int
) -> tuple[Bytes, PagePool]:
    """Allocate an engine's pool and describe it.

    Args:
        axes: Physical order of the axes L, B, H, N, C, and P if K and V are apart.
        layer_runs: Layers in each run, if there are several; they lie in memory last run first, so
            that no constant stride leads from one to the next.
        padding: Bytes of the allocation before the first and after the last page.
        **sizes: Size of each axis; C is in bytes, P defaults to 1.

    Returns:
        The allocation `[padding + product of sizes + padding]`, poisoned, and its description,
        valid while the allocation lives.
    """
    sizes = {"P": 1, **sizes}
    memory = np.full(2 * padding + math.prod(sizes.values()), POISON, np.uint8)
    strides = {"P": 0}
    for position, axis in enumerate(axes):
        strides[axis] = math.prod(sizes[inner] for inner in axes[position + 1 :])
    address = memory.ctypes.data + padding + sizes["L"] * strides["L"]
    runs = []
    for num_layers in layer_runs or [sizes["L"]]:
        address -= num_layers * strides["L"]
        runs.append(LayerRun(address, num_layers, strides["L"]))
    pool = PagePool(
        runs=tuple(runs),
        num_pages=sizes["B"],
        num_heads=sizes["H"],
        page_tokens=sizes["N"],
        num_planes=sizes["P"],
        plane_bytes=sizes["C"],
        page_stride=strides["B"],
        head_stride=strides["H"],
        token_stride=strides["N"],
        plane_stride=strides["P"],
        memory_start=memory.ctypes.data,
        memory_bytes=memory.nbytes,
    )
    return memory, pool


def read_block(pool: PagePool, page_ids: Iterable[int]) -> bytes:
    """Return the stored block `[H, L, N, C]` of these pages, read one plane at a time."""
    ids = list(page_ids)
    return b"".join(
        ctypes.string_at(address, num_bytes)
        for head in range(pool.num_heads)
        for layer in range(pool.num_layers)
        for page in ids
        for address, num_bytes in _planes(pool, layer, page, head)
    )


def write_page(pool: PagePool, page: int, position: int, block: Bytes) -> None:
    """Write one page from a stored block, one plane at a time.

    Args:
        pool: Where to write.
        page: Id of the page.
        position: Which page of the block it is.
        block: `[H, L, N, C]` bytes, in any shape with that order.
    """
    cells = block.reshape(pool.num_heads, pool.num_layers, -1)
    page_bytes = pool.page_tokens * pool.token_bytes
    for head in range(pool.num_heads):
        for layer in range(pool.num_layers):
            content = cells[head, layer, position * page_bytes :].tobytes()
            for address, num_bytes in _planes(pool, layer, page, head):
                ctypes.memmove(address, content, num_bytes)
                content = content[num_bytes:]


def _planes(pool: PagePool, layer: int, page: int, head: int) -> list[tuple[int, int]]:
    """Return address and size of all planes of one page, layer and head, in stored order."""
    return [
        (address + token * part.token_stride + plane * part.plane_stride, part.plane_bytes)
        for token in range(pool.page_tokens)
        for _, part in pool.parts
        for address in [_page_address(part, layer, page, head)]
        for plane in range(part.num_planes)
    ]


def _page_address(part: PagePool, layer: int, page: int, head: int) -> int:
    layers = [
        run.address + index * run.layer_stride
        for run in part.runs
        for index in range(run.num_layers)
    ]
    return layers[layer] + page * part.page_stride + head * part.head_stride
