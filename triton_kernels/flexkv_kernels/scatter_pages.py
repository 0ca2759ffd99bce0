"""Packed cells back into pages of one layer run, in any layout."""

import torch

from flexkv_kernels._jit.scatter_pages import scatter_pages_kernel
from flexkv_kernels._launch import as_words, check, launch

__all__ = ["scatter_pages", "scatter_pages_torch"]


def scatter_pages(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Copy `cells` into the pages named by `page_ids`, bit for bit, on the current stream.

    Args:
        pages: `[L, B, H, N, C]`, as in `gather_pages`; only the named pages are written.
        page_ids: `[num_blocks, block_pages]` int64, CPU; every page at most once.
        cells: `[num_blocks, H, L, block_pages * N, C]`, as in `gather_pages`.

    Raises:
        ValueError: shapes, strides, dtypes or devices that do not fit together, or a page that is
            named twice: which bytes it ends with would be a matter of luck.
        IndexError: a page id outside `pages`. Nothing was written.
    """
    _check_target(pages, page_ids, cells)
    launch(scatter_pages_kernel, pages, page_ids, cells)


def scatter_pages_torch(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Do the same with torch indexing, on any device: the reference."""
    _check_target(pages, page_ids, cells)
    pages, cells = as_words(pages, cells)
    paged = cells.unflatten(3, (page_ids.shape[1], pages.shape[3]))  # [block, H, L, page, N, C]
    pages[:, page_ids.to(pages.device)] = paged.permute(2, 0, 3, 1, 4, 5)


def _check_target(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Raise as `check` does, and for a page that is named twice."""
    check(pages, page_ids, cells)
    if page_ids.unique().numel() != page_ids.numel():
        msg = f"a page is named twice in {page_ids.numel()} page ids, expected each once"
        raise ValueError(msg)
