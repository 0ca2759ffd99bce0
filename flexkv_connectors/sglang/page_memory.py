"""HiCache's host pools as memory that files are read into and written from, page by page.

SGLang says itself where a page lies (`get_page_buffer_meta`), for whatever pool it has.
"""

from itertools import groupby
from typing import TYPE_CHECKING

import torch

from flexkv_connectors.sglang.host_pages import is_of_special_format
from flexkv_core.data.tiers.memory import PageMemory, PagePiece
from flexkv_core.errors import LayoutError

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

__all__ = ["format_name", "page_memory_of"]

_AFFINE = frozenset(
    {"DSAIndexerPoolHost", "MHATokenToKVPoolHost", "MLATokenToKVPoolHost", "MambaPoolHost"}
)
"""Pools whose pages stay where they are, one stride apart."""

_WAY_OUT = "leave block_format out if it is native, or serve this model without FlexKV"


def page_memory_of(pool: "HostKVCache") -> PageMemory:
    """Describe the pages of a host pool as the pieces that SGLang names.

    Raises:
        LayoutError: The pool is of a kind that we do not know, or its pages are not all alike.
    """
    kind = type(pool).__name__
    if kind not in _AFFINE or is_of_special_format(pool):
        msg = (
            f"SGLang's host memory is a {kind}, whose pages FlexKV cannot store as they are: "
            f"{_WAY_OUT}"
        )
        raise LayoutError(msg)
    last_page = pool.page_num - 1
    first, second, last = (_pieces(pool, page) for page in (0, min(1, last_page), last_page))
    pieces = [
        PagePiece(address, following - address, num_bytes)
        for (address, num_bytes), (following, _) in zip(first, second, strict=True)
    ]
    reached = [piece.address + last_page * piece.stride for piece in pieces]
    if reached != [address for address, _ in last]:
        msg = f"the pages of SGLang's {kind} are not one distance apart: {_WAY_OUT}"
        raise LayoutError(msg)
    return PageMemory(pieces, pool.page_num, owner=pool)


def format_name(pool: "HostKVCache", version: str) -> str:
    """Name the order of bytes in pages that are stored as they are, of this SGLang alone."""
    sizes = [num_bytes for _, num_bytes in _pieces(pool, 0)]
    pieces = "+".join(f"{len([*equal])}x{size}" for size, equal in groupby(sizes))
    return f"sglang-{version}.{type(pool).__name__}.{pool.layout}.{pieces}"


def _pieces(pool: "MHATokenToKVPoolHost", page: int) -> list[tuple[int, int]]:
    """Return address and size of each piece of a page; every pool in `_AFFINE` names them so."""
    first = page * pool.page_size
    try:
        addresses, sizes = pool.get_page_buffer_meta(torch.arange(first, first + pool.page_size))
    except (NotImplementedError, ValueError) as error:
        msg = (
            f"SGLang does not say where pages of its {type(pool).__name__} lie ({error}): set "
            f"--hicache-mem-layout to page_first or page_first_direct; otherwise, {_WAY_OUT}"
        )
        raise LayoutError(msg) from error
    return list(zip(addresses, sizes, strict=True))
