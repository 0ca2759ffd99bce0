"""Pages of one layer run, in any layout, into packed cells."""

import torch

from flexkv_kernels._jit.gather_pages import gather_pages_kernel
from flexkv_kernels._launch import as_words, check, launch

__all__ = ["gather_pages", "gather_pages_torch"]


def gather_pages(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Copy the pages named by `page_ids` into `cells`, bit for bit, on the current stream.

    Args:
        pages: `[L, B, H, N, C]` any dtype, CUDA, any strides but 1 for C: a view of the engine's
            pool. NHD: strides of H and N swapped; HND: contiguous pages; cross-layer: L inside B.
        page_ids: `[num_blocks, block_pages]` int64, CPU: the pages of each block in token order.
            It is copied to the device; nothing is waited for.
        cells: `[num_blocks, H, L, block_pages * N, C]` as `pages`; any strides but 1 for C, so
            that a run of layers can be a slice of whole blocks. Must not overlap itself.

    Raises:
        ValueError: shapes, strides, dtypes or devices that do not fit together.
        IndexError: a page id outside `pages`. Nothing was written.
    """
    check(pages, page_ids, cells)
    launch(gather_pages_kernel, pages, page_ids, cells)


def gather_pages_torch(pages: torch.Tensor, page_ids: torch.Tensor, cells: torch.Tensor) -> None:
    """Do the same with torch indexing, on any device: the reference."""
    check(pages, page_ids, cells)
    pages, cells = as_words(pages, cells)
    picked = pages[:, page_ids.to(pages.device)]  # [L, block, page, H, N, C]
    cells.copy_(picked.permute(1, 3, 0, 2, 4, 5).flatten(3, 4))
