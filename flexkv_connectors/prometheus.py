"""The table of metrics as Prometheus metrics, with the classes that an engine wants used."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from flexkv_core.metrics import METRICS

__all__ = ["MetricFamilies"]


class MetricFamilies:
    """`METRICS` as metrics named `flexkv:<name>`; to be made once in a process.

    Thread: one.
    """

    def __init__(
        self,
        counter: Callable[..., Any],
        gauge: Callable[..., Any],
        label_names: Sequence[str],
    ) -> None:
        """Register every row with `counter` or `gauge`, the classes of `prometheus_client`."""
        # A gauge is the engine's: the last value counts, whichever of several processes was told,
        # and whether or not that process still lives. Only changes are told.
        kinds: Mapping[str, Callable[..., Any]] = {
            "counter": counter,
            "gauge": partial(gauge, multiprocess_mode="mostrecent"),
        }
        self._families = {
            metric.name: kinds[metric.kind](
                name=f"flexkv:{metric.name}",
                documentation=metric.help,
                labelnames=list(label_names),
            )
            for metric in METRICS.values()
        }

    def begin(self, label_values: Sequence[object]) -> None:
        """Show every metric of one series, at zero."""
        for family in self._families.values():
            family.labels(*label_values)

    def note(self, changes: Mapping[str, float], label_values: Sequence[object]) -> None:
        """Record what changed in one series: counters by how much, gauges as they are."""
        for name, value in changes.items():
            series = self._families[name].labels(*label_values)
            series.inc(value) if METRICS[name].kind == "counter" else series.set(value)
