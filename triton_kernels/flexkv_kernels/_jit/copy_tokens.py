"""The copy of one job: the same in both directions, only source and target change places."""

import triton
import triton.language as tl


@triton.jit
def copy_tokens(
    source, source_stride, target, target_stride, num_tokens, token_words, tile: tl.constexpr
):
    """Copy `[num_tokens, token_words]` words, `tile` at a time; strides are from token to token."""
    start = 0
    while start < num_tokens * token_words:
        word = start + tl.arange(0, tile)  # [tile]
        token = (word // token_words).to(tl.int64)
        content = word % token_words
        mask = word < num_tokens * token_words
        words = tl.load(source + token * source_stride + content, mask=mask)
        tl.store(target + token * target_stride + content, words, mask=mask)
        start += tile
