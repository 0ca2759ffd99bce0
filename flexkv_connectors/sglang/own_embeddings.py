"""Requests that bring embeddings of their own for some tokens: their KV is not that of the tokens.

SGLang looks for no prefix of them; to 0.5.21 it keeps their KV all the same, under their tokens.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

__all__ = ["REQUEST", "keep_apart"]

REQUEST = "sglang.srt.managers.schedule_batch.Req"


def keep_apart(_: object, request: "Req", *__: object, **___: object) -> None:
    """Let nothing be kept of a request just made, if it has embeddings of its own."""
    if request.positional_embed_overrides is not None:
        request.skip_radix_cache_insert = True
