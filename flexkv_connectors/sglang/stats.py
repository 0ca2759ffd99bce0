"""Counts of one rank's storage as SGLang's own statistics and in its `/metrics`."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge
from sglang.srt.observability.metrics_collector import StorageMetrics

from flexkv_connectors.below_host.stores import PoolActivity
from flexkv_connectors.prometheus import MetricFamilies
from flexkv_core.block_store.blocks import Copies, Copy

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

__all__ = ["StorageStats"]

_LABELS = ("tp_rank", "pp_rank", "dp_rank")
_POOL = "pool"
"""SGLang's name for what is stored: "kv", or a pool beside it."""

_GB = 1e9


class StorageStats:
    """The metrics of one rank's storage.

    Thread: the scheduler's. SGLang asks only where its metrics are on; its `/metrics` adds up what
    `prometheus_client` counts in all of its processes, and finds ours there, too.
    """

    def __init__(self, storage: "HiCacheStorageConfig") -> None:
        self._label_values = [getattr(storage, name, 0) for name in _LABELS]

    def note(self, pool: str, changes: Mapping[str, float]) -> None:
        """Add what changed of `metrics.METRICS` to the metrics `flexkv:<name>`."""
        _families().note(changes, [*self._label_values, pool])

    def take(self, activities: Sequence[PoolActivity]) -> StorageMetrics:
        """Count what stores have done, and summarise it for SGLang."""
        summary = StorageMetrics()
        for activity in activities:
            self.note(activity.pool, activity.changes)
            _add(activity.copies, summary)
        return summary


def _add(copies: Copies, summary: StorageMetrics) -> None:
    """Describe jobs as SGLang's histograms want them: pages, and GB/s while they moved."""
    summary.prefetch_pgs += [copy.num_blocks for copy in copies.loads]
    summary.backup_pgs += [copy.num_blocks for copy in copies.saves]
    summary.prefetch_bandwidth += _speeds(copies.loads)
    summary.backup_bandwidth += _speeds(copies.saves)


@cache
def _families() -> MetricFamilies:
    """Register the metrics, once in a process: a storage may be attached again."""
    return MetricFamilies(Counter, Gauge, label_names=[*_LABELS, _POOL])


def _speeds(copies: Sequence[Copy]) -> list[float]:
    return [copy.num_bytes / copy.seconds / _GB for copy in copies if copy.seconds]
