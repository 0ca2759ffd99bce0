"""The class that vLLM calls: its own offloading, with our options and our tier below it."""

from typing import TYPE_CHECKING

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from flexkv_connectors.fault_barrier import refusals_in_one_line
from flexkv_connectors.versions import require_supported
from flexkv_connectors.vllm.offloading.options import read_options, translated

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["FlexKVOffloadingConnector"]


class FlexKVOffloadingConnector(OffloadingConnector):
    """vLLM's OffloadingConnector, told where to keep what leaves its host memory."""

    @refusals_in_one_line()
    def __init__(
        self, vllm_config: "VllmConfig", role: "KVConnectorRole", kv_cache_config: "KVCacheConfig"
    ) -> None:
        """Translate the options, and build vLLM's half for `role`.

        Raises:
            ConfigError: An option cannot be used.
            UnsupportedEngineError: This vLLM has never been checked.
        """
        require_supported("vllm", vllm.__version__)
        cache = read_options(vllm_config)
        super().__init__(translated(vllm_config, kv_cache_config, cache), role, kv_cache_config)
