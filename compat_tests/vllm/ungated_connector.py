"""FlexKV that offers whatever it has, whoever asks: what our gates are there for shows with it."""

from typing import Any

from glass_connector import GlassConnector
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from flexkv_connectors.vllm import deployment, requests
from flexkv_connectors.vllm.connector import FlexKVConnector


class UngatedConnector(GlassConnector):
    """Without a question to the model, and behind glass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        deployment.why_not_reuse = lambda vllm_config: None
        super().__init__(*args, **kwargs)


class OpenConnector(FlexKVConnector):
    """Until told otherwise, as the connector is."""

    def ask_requests(self, asks: bool) -> None:
        """Scheduler: decide whether requests that come are asked what may be skipped."""
        assert self._role is KVConnectorRole.SCHEDULER
        requests.why_not_skip = _ASKED if asks else lambda request: None


_ASKED = requests.why_not_skip
