"""What vLLM gets where its offloading is not used: a connector that does nothing."""

from typing import TYPE_CHECKING, Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)

if TYPE_CHECKING:
    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["IdleConnector"]


class IdleConnector(KVConnectorBase_V1, SupportsHMA):
    """Serves without caching."""

    @property
    @override
    def requires_kv_delivery(self) -> bool:
        return False

    @override
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Load nothing."""

    @override
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Wait for nothing."""

    @override
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: "torch.Tensor",
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Save nothing."""

    @override
    def wait_for_save(self) -> None:
        """Wait for nothing."""

    @override
    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int, bool]:
        return 0, False

    @override
    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """Note nothing."""

    @override
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return KVConnectorMetadata()

    @override
    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, None]:
        return False, None

    @override
    def reset_cache(self) -> bool:
        return True
