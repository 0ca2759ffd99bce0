"""Device side of `flexkv_kernels.copy_pages`.

A job is one (page, head, slab): `[page_tokens, C]` words. Jobs are numbered with the slab fastest,
which is the order of a stored block in memory.
"""

import triton
import triton.language as tl

_TABLES = ("source_slabs", "source_pages", "target_slabs", "target_pages")


# What differs from call to call must not name another kernel: each is compiled within a step.
@triton.jit(do_not_specialize=["num_jobs"], do_not_specialize_on_alignment=_TABLES)
def copy_pages_kernel(
    source,
    source_slabs,
    source_pages,
    target,
    target_slabs,
    target_pages,
    num_jobs,
    num_slabs,
    num_heads,
    page_tokens,
    token_units,
    source_head_stride,
    source_token_stride,
    target_head_stride,
    target_token_stride,
    unit_words: tl.constexpr,
    tile: tl.constexpr,
):
    """Copy whole jobs; each program takes every `num_programs`-th of them.

    Tables, strides and the content of a token are in units of `unit_words` words. The products
    tell the compiler how far it may trust every place, so units of 16 bytes are moved whole.
    """
    token_words = token_units * unit_words
    job = tl.program_id(0).to(tl.int64)
    while job < num_jobs:
        slab = job % num_slabs
        head = job // num_slabs % num_heads
        page = job // num_slabs // num_heads
        from_unit = tl.load(source_slabs + slab) + tl.load(source_pages + page)
        to_unit = tl.load(target_slabs + slab) + tl.load(target_pages + page)
        from_page = source + (from_unit + head * source_head_stride) * unit_words
        to_page = target + (to_unit + head * target_head_stride) * unit_words
        start = 0
        while start < page_tokens * token_words:
            word = start + tl.arange(0, tile)  # [tile]
            token = (word // token_words).to(tl.int64)
            content = word % token_words
            mask = word < page_tokens * token_words
            from_words = from_page + token * (source_token_stride * unit_words) + content
            to_words = to_page + token * (target_token_stride * unit_words) + content
            tl.store(to_words, tl.load(from_words, mask=mask), mask=mask)
            start += tile
        job += tl.num_programs(0)
