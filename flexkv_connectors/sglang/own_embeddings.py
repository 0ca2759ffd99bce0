"""Requests that replace the embeddings of some tokens: their KV is not the KV of those tokens.

SGLang looks for no cached prefix of such a request. Up to 0.5.21 it caches the request's KV all the
same, under the tokens.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

__all__ = ["REQUEST", "keep_apart"]

REQUEST = "sglang.srt.managers.schedule_batch.Req"


def keep_apart(_: object, request: "Req", *__: object, **___: object) -> None:
    """Keep the KV of a new request out of the cache if the request brings its own embeddings."""
    if request.positional_embed_overrides is not None:
        request.skip_radix_cache_insert = True
