"""The table of metrics as those of a tier, which vLLM's offloading carries to its `/metrics`."""

from collections.abc import Mapping

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)

from flexkv_core.metrics import METRICS

__all__ = ["metric_definitions", "stats_of"]

_KINDS = {"counter": OffloadingCounterMetadata, "gauge": OffloadingGaugeMetadata}


def metric_definitions() -> dict[str, OffloadingMetricMetadata]:
    """Return `METRICS` in vLLM's form, named `flexkv:<name>`."""
    return {
        f"flexkv:{metric.name}": _KINDS[metric.kind](documentation=metric.help)
        for metric in METRICS.values()
    }


def stats_of(changes: Mapping[str, float]) -> OffloadingConnectorStats:
    """Return what changed of `METRICS` in vLLM's form."""
    stats = OffloadingConnectorStats()
    for name, value in changes.items():
        if METRICS[name].kind == "counter":
            stats.increase_counter(f"flexkv:{name}", value)
        else:
            stats.set_gauge(f"flexkv:{name}", value)
    return stats
