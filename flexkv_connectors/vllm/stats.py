"""Counts of the cache as vLLM's connector statistics: its log line and its `/metrics`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from flexkv_connectors.prometheus import MetricFamilies
from flexkv_core.metrics import METRICS

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["FlexKVPromMetrics", "FlexKVStats"]

_MB = 1e6


class FlexKVStats(KVConnectorStats):
    """What changed since the last step: `data` maps names of `METRICS` to numbers."""

    data: dict[str, float]

    @override
    def reset(self) -> None:
        self.data = {}

    @override
    def is_empty(self) -> bool:
        return not self.data

    @override
    def aggregate(self, other: KVConnectorStats) -> "FlexKVStats":
        """Add `other`'s counters; its gauges are newer and replace ours."""
        for name, value in other.data.items():
            counts = METRICS[name].kind == "counter"
            self.data[name] = self.data.get(name, 0) + value if counts else value
        return self

    @override
    def reduce(self) -> dict[str, int | float]:
        """Summarise an interval for vLLM's log line."""
        summary = {name: round(value, 3) for name, value in sorted(self.data.items())}
        for kind in ("load", "save"):
            seconds = self.data.get(f"{kind}_seconds", 0)
            if seconds:
                speed = self.data.get(f"{kind}_bytes", 0) / seconds / _MB
                summary[f"{kind}_MB_per_s"] = round(speed, 1)
        return summary


class FlexKVPromMetrics(KVConnectorPromMetrics):
    """The table `METRICS` as Prometheus metrics named `flexkv:<name>`, one series an engine."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        metric_types: Mapping[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: Mapping[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._families = MetricFamilies(self._counter_cls, self._gauge_cls, labelnames)
        self._label_values = per_engine_labelvalues
        for label_values in per_engine_labelvalues.values():
            self._families.begin(label_values)

    @override
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Record one step's changes of engine `engine_idx`."""
        self._families.note(transfer_stats_data, self._label_values[engine_idx])
