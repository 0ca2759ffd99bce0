"""TensorRT-LLM's requests: their tokens, and what makes keys of them."""

import secrets
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from typing_extensions import override

from flexkv_connectors.announcer import BlockPages
from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.request import RequestState
from flexkv_core.block.keys import MAX_NAME_CHARACTERS, KeyChain, chain_seed
from flexkv_core.block.types import RequestId

__all__ = ["TrtllmRequest", "chain_of", "may_skip"]

_THIS_PROCESS = secrets.token_bytes(16)
"""The engine names a LoRA by a number of the user's, which means nothing to other processes."""

_MORE_THAN_TOKENS = (
    "mrope_rotary_cos_sin",
    "multimodal_embedding",
    "multimodal_hashes",
    "multimodal_positions",
    "prompt_embedding_table",
    "py_multimodal_data",
)
"""Attributes of a request whose KV depends on more than its token ids."""

_OF_EVERY_TOKEN = ("py_additional_outputs", "py_return_context_logits")
"""Outputs that a request wants for each token of its prompt; log probabilities of prompts are made
from the context's logits. The engine silently leaves out those of skipped tokens."""


def may_skip(request: Any) -> bool:  # noqa: ANN401 LlmRequest
    """Return whether computing part of the prompt may be skipped; it may always be saved."""
    return not any(getattr(request, name, None) for name in _OF_EVERY_TOKEN)


def chain_of(request: Any, block_tokens: int) -> KeyChain | None:  # noqa: ANN401 LlmRequest
    """Start the key chain of a request; None if its tokens do not identify its KV.

    A salt so long that hashing it would slow other requests has none, either.
    """
    if any(getattr(request, name, None) is not None for name in _MORE_THAN_TOKENS):
        return None
    salt = _salt_of(request)
    if salt is not None and len(salt) > MAX_NAME_CHARACTERS:
        return None
    task = getattr(request, "lora_task_id", None)
    adapter = None if task is None else sha256(_THIS_PROCESS + b"%d" % task).digest()
    seed = chain_seed(cache_salt=salt, adapter=adapter)
    return KeyChain(block_tokens, seed)


def _salt_of(request: Any) -> str | None:  # noqa: ANN401 LlmRequest
    """Return the salt, or the number that some versions keep in its place."""
    salt = getattr(request, "cache_salt", None)
    number = getattr(request, "cache_salt_id", None)
    return f"id:{number}" if salt is None and number is not None else salt


class TrtllmRequest(RequestState):
    """One allocation of pages for a request, from its match to its end.

    The engine's own request object is not kept: it belongs to the engine's C++ side.
    """

    __slots__ = ("is_described", "tokens")

    def __init__(
        self,
        request_id: RequestId,
        tokens: Iterable[int],
        deployment: Deployment,
        chain: KeyChain | None,
    ) -> None:
        super().__init__(request_id, deployment, chain)
        self.may_load = self.may_save = chain is not None
        self.tokens = list(tokens)
        self.is_described = False
        """Whether the engine has described this allocation from its first page on."""

    @property
    @override
    def num_tokens(self) -> int:
        return len(self.tokens)

    @override
    def extend(self, chain: KeyChain) -> None:
        chain.advance(self.tokens)

    @override
    def describe(self, blocks: range) -> Sequence[BlockPages]:
        """Return nothing: no announcer is there to ask."""
        return ()
