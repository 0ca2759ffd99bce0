"""Engine pages and host slots as numpy arrays with the same axes, so that a copy is `a[...] = b`.

The axes are those of the stored block, `[..., H, L, N, P]` (head, layer, token in page, plane),
whatever order the engine keeps them in: strides do the conversion. One element is a whole plane of
one token and head, as raw bytes (`V512` for 128 + 128 values of bf16). numpy has no bfloat16, but
needs none to copy; it moves such elements with one memmove each, or one for many if they are
adjacent. That is 1.15 to 1.2 x as fast as 8-byte words for token-major pages, and equally fast for
head-major ones (2 cores of an AMD EPYC, numpy 2.3, November 2026).
"""

import ctypes
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from flexkv_core.block.layout import BlockFormat, PagePool
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.errors import LayoutError

__all__ = ["Planes", "RunView", "check_fit", "page_views", "slot_view"]

_SIZES_OF_NUMBERS = (1, 2, 4, 8)

Planes = NDArray[np.void]
"""An array whose elements are `plane_bytes` raw bytes."""


@dataclass(frozen=True, slots=True)
class RunView:
    """The pages of one `LayerRun`."""

    layers: range
    """Positions of the run's layers among the rank's."""

    pages: Planes
    """`[num_pages, H, layers of the run, N, P]`; writing to it writes the engine's memory."""


def page_views(pool: PagePool) -> list[RunView]:
    """View an engine's pages, one array for each run of layers; its `rest` is left out.

    The arrays do not keep the memory alive: it belongs to the engine. numpy checks that no
    element lies outside the allocation.
    """
    memory = memoryview((ctypes.c_char * pool.memory_bytes).from_address(pool.memory_start))
    views = []
    first_layer = 0
    for run in pool.runs:
        pages: Planes = np.ndarray(
            (pool.num_pages, pool.num_heads, run.num_layers, pool.page_tokens, pool.num_planes),
            _element(pool.plane_bytes),
            memory,
            run.address - pool.memory_start,
            (
                pool.page_stride,
                pool.head_stride,
                run.layer_stride,
                pool.token_stride,
                pool.plane_stride,
            ),
        )
        views.append(RunView(range(first_layer, first_layer + run.num_layers), pages))
        first_layer += run.num_layers
    return views


def slot_view(host: HostPool, fmt: BlockFormat, pool: PagePool, offset: int = 0) -> Planes:
    """View a host pool as `[slots, pages in a block, H, L, N, P]`, in the planes of `pool`.

    Args:
        host: The slots.
        fmt: The blocks in them.
        pool: The pages that fill them.
        offset: Where the pool's bytes begin within those of a token.

    Raises:
        LayoutError: `pool` cannot fill blocks of `fmt`, or they do not fit the slots.
    """
    check_fit(host, fmt, pool, offset)
    token = fmt.token_bytes
    layer = fmt.block_tokens * token
    slots: Planes = np.ndarray(
        (
            host.num_slots,
            fmt.block_tokens // pool.page_tokens,
            fmt.num_heads,
            fmt.num_layers,
            pool.page_tokens,
            pool.num_planes,
        ),
        _element(pool.plane_bytes),
        host.buffer,
        offset,
        (
            host.slot_stride,
            pool.page_tokens * token,
            fmt.num_layers * layer,
            layer,
            token,
            pool.plane_bytes,
        ),
    )
    return slots


def _element(num_bytes: int) -> "np.dtype[np.void]":
    """Return the type of a plane: an integer type if one has this size, else raw bytes."""
    kind = f"u{num_bytes}" if num_bytes in _SIZES_OF_NUMBERS else (np.void, num_bytes)
    return cast("np.dtype[np.void]", np.dtype(kind))


def check_fit(host: HostPool, fmt: BlockFormat, pool: PagePool, offset: int = 0) -> None:
    """Reject a mismatch of host, format and pool; arguments and errors as in `slot_view`."""
    got = (pool.num_heads, pool.num_layers, offset + pool.token_bytes)
    expected = (fmt.num_heads, fmt.num_layers, fmt.token_bytes)
    if got != expected:
        msg = (
            f"the engine's pages have (heads, layers, bytes per token and head) = {got}, the "
            f"stored block has {expected}: both must be made from the same model and rank"
        )
        raise LayoutError(msg)
    if fmt.block_tokens % pool.page_tokens:
        msg = (
            f"a block of {fmt.block_tokens} tokens is not a whole number of the engine's pages of "
            f"{pool.page_tokens} tokens: set block_tokens to a multiple of the page size"
        )
        raise LayoutError(msg)
    if fmt.block_bytes > host.slot_bytes:
        msg = f"a block of {fmt.block_bytes} bytes does not fit a slot of {host.slot_bytes} bytes"
        raise LayoutError(msg)
