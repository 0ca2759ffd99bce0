"""Device side of `flexkv_kernels.scatter_pages`."""

import triton
import triton.language as tl

from flexkv_kernels._jit.copy_tokens import copy_tokens
from flexkv_kernels._jit.offsets import job_offsets


@triton.jit
def scatter_pages_kernel(
    pages,
    page_ids,
    cells,
    num_jobs,
    num_layers,
    num_heads,
    block_pages,
    page_tokens,
    token_words,
    page_layer_stride,
    page_stride,
    page_head_stride,
    page_token_stride,
    cell_block_stride,
    cell_head_stride,
    cell_layer_stride,
    cell_token_stride,
    tile: tl.constexpr,
):
    """Copy whole jobs from cells to pages; each program takes every `num_programs`-th job."""
    job = tl.program_id(0).to(tl.int64)
    while job < num_jobs:
        in_pages, in_cells = job_offsets(
            job,
            page_ids,
            num_layers,
            num_heads,
            block_pages,
            page_tokens,
            page_layer_stride,
            page_stride,
            page_head_stride,
            cell_block_stride,
            cell_head_stride,
            cell_layer_stride,
            cell_token_stride,
        )
        copy_tokens(
            cells + in_cells,
            cell_token_stride,
            pages + in_pages,
            page_token_stride,
            page_tokens,
            token_words,
            tile,
        )
        job += tl.num_programs(0)
