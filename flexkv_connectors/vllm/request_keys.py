"""From vLLM's requests to block keys: everything that changes a request's KV enters its keys."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.vllm.adapters import Adapter
from flexkv_connectors.vllm.support import why_not_request
from flexkv_core.block.keys import KeyChain, MediaSpan, chain_seed
from flexkv_core.block.types import BlockKey

if TYPE_CHECKING:
    from vllm.v1.request import Request

__all__ = ["RequestKeys", "media_spans", "num_text_blocks"]


class RequestKeys:
    """The keys of one request. Thread: the scheduler's."""

    __slots__ = ("_adapter", "_block_tokens", "_chain", "_namespace", "_request", "are_possible")

    def __init__(
        self,
        request: "Request",
        adapter: Adapter | None,
        *,
        block_tokens: int,
        namespace: str | None,
    ) -> None:
        self._request = request
        self._adapter = adapter
        self._block_tokens = block_tokens
        self._namespace = namespace
        self._chain: KeyChain | None = None
        self.are_possible = why_not_request(request) is None
        """Whether the tokens of the request identify its KV."""

    @property
    def are_known(self) -> bool:
        """Whether there are any yet: the content of an adapter is read in the background."""
        return self.are_possible and (self._adapter is None or self._adapter.digest is not None)

    @property
    def so_far(self) -> Sequence[BlockKey]:
        """The keys that were made by now."""
        return () if self._chain is None else self._chain.keys

    def advance(self) -> None:
        """Make the keys of all full blocks of the tokens known by now, if they are known.

        Raises:
            TokenError: A token id is not an unsigned 32-bit integer. No key was added.
        """
        if self._chain is None and self.are_known:
            seed = chain_seed(
                cache_salt=self._request.cache_salt,
                adapter=None if self._adapter is None else self._adapter.digest,
                request_namespace=self._namespace,
            )
            self._chain = KeyChain(self._block_tokens, seed)
        if self._chain is not None:
            self._chain.advance(self._request.all_token_ids, media_spans(self._request))


def media_spans(request: "Request") -> list[MediaSpan]:
    """Return the multimodal items of `request`, by their identifiers."""
    return [
        MediaSpan(item.mm_position.offset, item.mm_position.length, item.identifier)
        for item in request.mm_features
    ]


def num_text_blocks(request: "Request", block_tokens: int) -> int | None:
    """Return how many blocks lie before the first multimodal item; None if there is no item.

    The identifier of an item is a hash of its content, or what a client has sent as its `uuid`:
    nothing here can tell the two apart.
    """
    offsets = [item.mm_position.offset for item in request.mm_features]
    return min(offsets) // block_tokens if offsets else None
