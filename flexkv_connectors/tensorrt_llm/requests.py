"""What is known of one request, and the keys of its blocks."""

import secrets
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from flexkv_connectors.session.tier_use import TierUse
from flexkv_core.block.keys import MAX_NAME_LETTERS, KeyChain, chain_seed
from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.lease import Lease
from flexkv_core.errors import TokenError

__all__ = ["RequestState", "chain_of", "may_skip"]

_THIS_PROCESS = secrets.token_bytes(16)
"""What the engine calls a LoRA is a number of the user's; it means nothing to other processes."""

_MORE_THAN_TOKENS = (
    "mrope_rotary_cos_sin",
    "multimodal_embedding",
    "multimodal_hashes",
    "multimodal_positions",
    "prompt_embedding_table",
    "py_multimodal_data",
)
"""What makes the token ids of a request stand for something that they do not say."""

_OF_EVERY_TOKEN = ("py_additional_outputs", "py_return_context_logits")
"""What a request is to return of each token of its prompt; log probabilities of prompts are made
from the context's logits. The engine cuts them off by what was skipped, and says nothing."""


def may_skip(request: Any) -> bool:  # noqa: ANN401 LlmRequest
    """Whether computing a part of the prompt may be skipped; it may be saved in any case."""
    return not any(getattr(request, name, None) for name in _OF_EVERY_TOKEN)


def chain_of(request: Any, block_tokens: int) -> KeyChain | None:  # noqa: ANN401 LlmRequest
    """Start the key chain of a request; None if its tokens do not identify its KV.

    Nor is there one behind a salt so long that hashing it would slow others.
    """
    if any(getattr(request, name, None) is not None for name in _MORE_THAN_TOKENS):
        return None
    salt = _salt_of(request)
    if salt is not None and len(salt) > MAX_NAME_LETTERS:
        return None
    task = getattr(request, "lora_task_id", None)
    adapter = None if task is None else sha256(_THIS_PROCESS + b"%d" % task).digest()
    seed = chain_seed(cache_salt=salt, adapter=adapter)
    return KeyChain(block_tokens, seed)


def _salt_of(request: Any) -> str | None:  # noqa: ANN401 LlmRequest
    """Return the salt; versions that keep only a number for it are kept apart by that."""
    salt = getattr(request, "cache_salt", None)
    number = getattr(request, "cache_salt_id", None)
    return f"id:{number}" if salt is None and number is not None else salt


class RequestState:
    """One allocation of pages for a request, from its match to its end.

    The engine's own request is not kept: the one that is asked about belongs to its C++ side.
    """

    __slots__ = (
        "_chain",
        "id",
        "is_loading",
        "is_told",
        "lease",
        "may_save",
        "num_tried_blocks",
        "offer",
        "page_ids",
        "ssd_use",
        "tokens",
    )

    def __init__(self, number: int, tokens: Iterable[int], chain: KeyChain | None) -> None:
        self.id = number
        self._chain = chain
        self.tokens = list(tokens)
        self.page_ids: list[int] = []
        """The engine's page table of the request; a page that it has not got is below 0."""

        self.lease: Lease | None = None
        """What the offer stands on, until its load is planned."""

        self.offer = range(0)
        """Tokens that the engine was offered, until their load is planned."""

        self.is_loading = False
        """While it is, the engine must not give the pages to anybody else."""

        self.is_told = False
        """Whether the engine has described this allocation from its beginning."""

        self.may_save = chain is not None
        self.num_tried_blocks = 0
        """Leading blocks whose saving was decided; what did not fit then is tried with the next."""

        self.ssd_use: TierUse | None = None

    @property
    def request_id(self) -> RequestId:
        """The request's name in the core."""
        return RequestId(str(self.id))

    def keys(self) -> Sequence[BlockKey]:
        """Return the keys of all full blocks of the tokens known by now, if they have any."""
        if self._chain is None:
            return ()
        try:
            self._chain.advance(self.tokens)
        except TokenError:
            self._chain = None
            self.may_save = False
            return ()
        return self._chain.keys

    def pages_until(self, num_tokens: int, page_tokens: int) -> Sequence[int]:
        """Return the pages of the first `num_tokens` tokens, up to the first that is not there."""
        pages = self.page_ids[: num_tokens // page_tokens]
        return pages[: next((at for at, page in enumerate(pages) if page < 0), len(pages))]
