"""What the harness adds to vLLM: a look at pages, and a connector that lies."""

import hashlib
from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)


class WorkerProbe:
    """Mixed into vLLM's worker class by `worker_extension_cls`."""

    def page_digests(self, page_ids: list[int]) -> list[str]:
        """Digest the bytes of each page over all layers of this rank."""
        import torch

        digests = []
        for page_id in page_ids:
            digest = hashlib.sha256()
            for cache in self.model_runner.kv_caches:
                page = cache[page_id].contiguous().flatten().view(torch.uint8)
                digest.update(page.numpy().tobytes())
            digests.append(digest.hexdigest())
        return digests

    def remember_pages(self, page_ids: list[int]) -> None:
        """Copy pages of this rank."""
        caches = self.model_runner.kv_caches
        self._remembered = [[cache[page_id].clone() for cache in caches] for page_id in page_ids]

    def page_differences(self, page_ids: list[int]) -> list[float]:
        """Return the largest difference in each page of this rank to the remembered one."""
        pages = [[cache[page_id] for cache in self.model_runner.kv_caches] for page_id in page_ids]
        return [
            max((now - before).abs().max().item() for now, before in zip(*layers, strict=True))
            for layers in zip(pages, self._remembered, strict=True)
        ]

    def scribble(self, byte: int) -> None:
        """Overwrite all pages of this rank."""
        import torch

        for cache in self.model_runner.kv_caches:
            cache.untyped_storage().fill_(byte)
            assert cache.flatten()[:1].view(torch.uint8)[0] == byte

    def scale_keys(self, factor: float) -> None:
        """Multiply what every attention layer sees, which no kernel keeps a packed copy of."""
        for name, weight in self.model_runner.model.named_parameters():
            if name.endswith("input_layernorm.weight"):
                weight.data.mul_(factor)

    def call_connector(self, method: str, **arguments: Any) -> Any:
        """Call a method of this rank's connector."""
        return getattr(get_kv_transfer_group(), method)(**arguments)


class PhantomConnector(KVConnectorBase_V1):
    """Promises every full page of a prompt that says "lie", and copies nothing."""

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        if not request.kv_transfer_params:
            return 0, False
        page_tokens = self._vllm_config.cache_config.block_size
        whole_pages = (request.num_tokens - 1) // page_tokens * page_tokens
        return max(whole_pages - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass
