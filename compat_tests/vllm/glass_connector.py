"""Our connector behind glass: a test sees what it moves, and can spoil what it holds."""

import hashlib
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from flexkv_connectors.vllm.connector import FlexKVConnector


class GlassConnector(FlexKVConnector):
    """Behaves like its parent until told otherwise."""

    _kv_caches: dict[str, torch.Tensor]
    _last_page_ids: list[int]

    @override
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._kv_caches = kv_caches
        super().register_kv_caches(kv_caches)

    @override
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self._last_page_ids = list(block_ids[0])
        return super().request_finished_all_groups(request, block_ids)

    def last_page_ids(self) -> list[int]:
        """Return the page table of the request that has ended last. Scheduler's side."""
        return self._last_page_ids

    def page_tokens(self) -> int:
        """Return the tokens in one of vLLM's blocks."""
        return self._vllm_config.cache_config.block_size

    def page_digests(self, page_ids: list[int]) -> list[str]:
        """Digest each page over all layers of this rank."""
        layers = [cache.view(torch.uint8).numpy() for cache in self._kv_caches.values()]
        pages = (b"".join(layer[page].tobytes() for layer in layers) for page in page_ids)
        return [hashlib.sha256(page).hexdigest() for page in pages]

    def spoil(self) -> bool:
        """Invert every bit of the host pool, if this rank owns one."""
        half = self._worker
        if half._deployment.is_owner:
            assert half.session.pool is not None
            content = np.frombuffer(half.session.pool.buffer, np.uint8)
            np.invert(content, out=content)
        return half._deployment.is_owner
