"""Our connector with a way to spoil what it holds: the negative control of every oracle."""

import numpy as np
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from flexkv_connectors.vllm.connector import FlexKVConnector

CONNECTOR = {
    "kv_connector": "PoisonableConnector",
    "kv_connector_module_path": "poisonable_connector",
}


class PoisonableConnector(FlexKVConnector):
    """Behaves like its parent until told otherwise."""

    def poison(self) -> bool:
        """Invert every bit of the host pool that this rank owns, if it owns one."""
        half = self._worker
        if half._deployment.is_owner:
            content = np.frombuffer(half._pool.buffer, np.uint8)
            np.invert(content, out=content)
        return half._deployment.is_owner
