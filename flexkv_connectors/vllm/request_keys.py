"""From vLLM's requests to block keys: everything that changes a request's KV enters its keys."""

from typing import TYPE_CHECKING

from flexkv_connectors.vllm.support import why_not_request
from flexkv_core.keys import KeyChain, MediaSpan, chain_seed
from flexkv_core.model_identity import identify_adapter

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

__all__ = ["RequestKeys", "media_spans"]


class RequestKeys:
    """Starts the key chains of requests. Thread: the scheduler's."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._adapters: dict[tuple[int, str], bytes | None] = {}

    def chain_for(self, request: "Request", namespace: str | None) -> KeyChain | None:
        """Return an empty chain for `request`, or None if its tokens do not identify its KV."""
        if why_not_request(request) is not None:
            return None
        adapter = None
        if request.lora_request is not None:
            adapter = self._adapter(request.lora_request)
            if adapter is None:
                return None
        seed = chain_seed(
            cache_salt=request.cache_salt, adapter=adapter, request_namespace=namespace
        )
        return KeyChain(self._block_tokens, seed)

    def _adapter(self, lora: "LoRARequest") -> bytes | None:
        """Identify a LoRA by content, once per load of it; None if it cannot be read."""
        key = (lora.lora_int_id, lora.lora_path)
        if key not in self._adapters or getattr(lora, "load_inplace", False):
            self._adapters[key] = identify_adapter(lora.lora_path)
        return self._adapters[key]


def media_spans(request: "Request") -> list[MediaSpan]:
    """Return the multimodal items of `request`, by their full content hashes."""
    return [
        MediaSpan(item.mm_position.offset, item.mm_position.length, item.identifier)
        for item in request.mm_features
    ]
