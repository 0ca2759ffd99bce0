"""Our connector under vLLM's name for FlexKV's own, `FlexKVConnectorV1`."""

import logging
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.flexkv_connector import FlexKVConnectorV1

from flexkv_connectors.vllm.by_device import FlexKVByDevice

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["FlexKVStandIn"]

logger = logging.getLogger(__name__)


class FlexKVStandIn(FlexKVByDevice):
    """What `flexkv` is, and passes for an instance of vLLM's own class.

    Dynamo's PdConnector takes no other class of FlexKV. A subclass would inherit hooks that lead to
    FlexKV's package.
    """

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> KVConnectorBase_V1:
        """Make the connector that is stood for."""
        connector = super().__new__(cls, vllm_config, role, kv_cache_config)
        FlexKVConnectorV1.register(type(connector))
        if role is KVConnectorRole.SCHEDULER:
            logger.info("connector.replaced: FlexKVConnectorV1 is FlexKV Connectors here")
        return connector


FlexKVStandIn.__name__ = "flexkv"
"""As those that it makes: MultiConnector looks statistics up by this name, which is registered."""
