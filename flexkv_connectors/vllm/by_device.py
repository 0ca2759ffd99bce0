"""What vLLM's users name `flexkv`: the way into the engine that suits its device."""

import logging
from abc import ABCMeta
from typing import TYPE_CHECKING, Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)

from flexkv_connectors.fault_barrier import refusals_in_one_line
from flexkv_core.env import read_environment
from flexkv_core.metrics import METRICS

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
    )
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["FlexKVByDevice"]

logger = logging.getLogger(__name__)


class FlexKVByDevice(KVConnectorBase_V1, SupportsHMA):
    """Stands for the session on a CPU, and for vLLM's own offloading on a GPU; is never made.

    `enable_gpu` is about the session's own way to a GPU: where it is set, to whatever value, it is
    the session that reads it. Where vLLM's offloading has not been tried in this version, too.
    """

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> KVConnectorBase_V1:
        """Make the connector that is stood for; it passes for vLLM's own connector of FlexKV."""
        connector = _kind_for(vllm_config)(vllm_config, role, kv_cache_config)
        stock = _stock()
        # Dynamo's PdConnector takes no others. What a subclass inherits leads to FlexKV's package.
        ABCMeta.register(stock, type(connector))
        name = vllm_config.kv_transfer_config.kv_connector
        if role is KVConnectorRole.SCHEDULER and name == stock.__name__:
            logger.info("connector.replaced: %s is FlexKV Connectors here", name)
        return connector

    @classmethod
    @override
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str | None:
        layout: str | None = _kind_for(vllm_config).get_required_kvcache_layout(vllm_config)
        return layout

    @classmethod
    @override
    def build_kv_connector_stats(
        cls, data: dict[str, Any] | None = None
    ) -> "KVConnectorStats | None":
        """Take in counts as either way sends them: vLLM does not say whose they are."""
        kind = _session() if METRICS.keys() >= (data or {}).keys() else _offloading()
        return kind.build_kv_connector_stats(data)

    @classmethod
    @override
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> "KVConnectorPromMetrics | None":
        return _kind_for(vllm_config).build_prom_metrics(
            vllm_config, metric_types, labelnames, per_engine_labelvalues
        )


FlexKVByDevice.__name__ = "flexkv"
"""As it is registered: MultiConnector looks a child's statistics up by the name of its class."""


@refusals_in_one_line()
def _kind_for(vllm_config: "VllmConfig") -> type[KVConnectorBase_V1]:
    return _offloading() if _is_offloaded(vllm_config) else _session()


def _is_offloaded(vllm_config: "VllmConfig") -> bool:
    transfer = vllm_config.kv_transfer_config
    options = {**read_environment(), **transfer.kv_connector_extra_config}
    if "spec_name" in options:  # a way of the user's own to offload
        return True
    enable_gpu = options.get("enable_gpu")
    is_unsaid = enable_gpu is None or enable_gpu == ""
    if not is_unsaid or not _is_nvidia(vllm_config):
        return False
    from flexkv_connectors.vllm.offloading.support import (  # noqa: PLC0415 the same
        tried_kinds,
    )

    return bool(tried_kinds())


def _is_nvidia(vllm_config: "VllmConfig") -> bool:
    from vllm.platforms import current_platform  # noqa: PLC0415 vLLM is loaded by its own processes

    device = str(vllm_config.device_config.device_type)
    return device == "cuda" and not current_platform.is_rocm()


def _session() -> type[KVConnectorBase_V1]:
    from flexkv_connectors.vllm.connector import (  # noqa: PLC0415 only what is used is loaded
        FlexKVConnector,
    )

    return FlexKVConnector


def _offloading() -> type[KVConnectorBase_V1]:
    from flexkv_connectors.vllm.offloading.connector import (  # noqa: PLC0415 the same
        FlexKVOffloadedByDevice,
    )

    return FlexKVOffloadedByDevice


def _stock() -> ABCMeta:
    from vllm.distributed.kv_transfer.kv_connector.v1.flexkv_connector import (  # noqa: PLC0415 a version without it is refused first
        FlexKVConnectorV1,
    )

    stock: ABCMeta = FlexKVConnectorV1
    return stock
