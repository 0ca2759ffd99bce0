"""Where one job finds its page and its cell: shared by gather and scatter, so they cannot differ.

A job is one (stored block, page in block, head, layer): `[page_tokens, C]` words. Jobs are numbered
with the layer fastest, which is the order of a cell in memory.
"""

import triton
import triton.language as tl


@triton.jit
def job_offsets(
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
):
    """Return the word offsets of the first token of `job` in the pages and in the cells."""
    layer = job % num_layers
    head = job // num_layers % num_heads
    page = job // num_layers // num_heads
    page_id = tl.load(page_ids + page)
    block = page // block_pages
    token = page % block_pages * page_tokens
    in_pages = page_id * page_stride + head * page_head_stride + layer * page_layer_stride
    in_cells = (
        block * cell_block_stride
        + head * cell_head_stride
        + layer * cell_layer_stride
        + token * cell_token_stride
    )
    return in_pages, in_cells
