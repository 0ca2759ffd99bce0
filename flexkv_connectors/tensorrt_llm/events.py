"""What routers are told of TensorRT-LLM's requests: pages, under names that we give them."""

from collections.abc import Sequence
from typing import Any

from flexkv_connectors.announcer import BlockPages, PageKind, pack_tokens
from flexkv_core.block.keys import KeyChain
from flexkv_core.event_options import EventOptions

__all__ = ["PageNames", "kind_of"]

_NAME_BYTES = 8
_MIN_NAME = 2**32
"""llm-d refuses what msgpack writes in fewer than 8 bytes, and takes 0 for no parent."""


def kind_of(request: Any, page_tokens: int, options: EventOptions) -> PageKind | None:  # noqa: ANN401 LlmRequest
    """Return what all pages of a request have in common; None if events cannot say it.

    Routers know a LoRA by its name and a salt by its text, where this engine may have numbers.
    """
    salt = getattr(request, "cache_salt", None)
    unsaid = ("lora_task_id", "cache_salt_id") if salt is None else ("lora_task_id",)
    if any(getattr(request, name, None) is not None for name in unsaid):
        return None
    if salt is not None and not (options.can_say_salts and _is_encodable(salt)):
        return None
    return PageKind(page_tokens, cache_salt=salt)


class PageNames:
    """Names of one request's pages, from the keys that they would have if each was a block."""

    def __init__(self, chain: KeyChain, kind: PageKind, pages_per_block: int) -> None:
        """Name nothing yet.

        Args:
            chain: One of pages.
            kind: What the pages have in common.
            pages_per_block: How many of them are a block.
        """
        self._chain = chain
        self._kind = kind
        self._pages_per_block = pages_per_block

    def pages_of(self, tokens: Sequence[int], blocks: range) -> list[BlockPages]:
        """Return what is told of some blocks; `tokens` are those of the request up to their end."""
        self._chain.advance(tokens)
        return [self._pages_of(tokens, block * self._pages_per_block) for block in blocks]

    def _pages_of(self, tokens: Sequence[int], first: int) -> BlockPages:
        end, page_tokens = first + self._pages_per_block, self._kind.page_tokens
        keys = self._chain.keys
        packed = pack_tokens(tokens[first * page_tokens : end * page_tokens])
        assert packed is not None, "tokens that have keys"
        return BlockPages(
            names=tuple(map(_name_of, keys[first:end])),
            parent=_name_of(keys[first - 1]) if first else None,
            packed_tokens=packed,
            kind=self._kind,
        )


def _name_of(key: bytes) -> int:
    return max(int.from_bytes(key[:_NAME_BYTES], "big"), _MIN_NAME)


def _is_encodable(text: str) -> bool:
    """Return whether `text` can be sent: a client's broken JSON may have lone surrogates."""
    return text.encode(errors="ignore").decode() == text
