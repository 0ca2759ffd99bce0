"""All metrics of the cache, as one table. A leaf.

Code adds to a metric by name; an unknown name is a bug that the tests find. Engines' adapters turn
the table into their own metrics (vLLM: Prometheus through its `/metrics`).
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

__all__ = ["METRICS", "Counters", "Metric", "Recorder"]


class Metric(msgspec.Struct, frozen=True):
    """One row of the table; a name ends in its unit."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "match_hit_blocks",
            "counter",
            "Blocks given to requests beyond the engine's own prefix hit, in each of their loads",
        ),
        Metric("match_miss", "counter", "Requests, or loads by key, that found nothing"),
        Metric("load_tokens", "counter", "Tokens loaded for the engine instead of recomputed"),
        Metric("ssd_load_tokens", "counter", "The part of load_tokens that came from SSD"),
        Metric("load_bytes", "counter", "Bytes copied into engine pages"),
        Metric("load_seconds", "counter", "Seconds spent copying into engine pages"),
        Metric("load_failed_blocks", "counter", "Blocks that were offered but could not be loaded"),
        Metric("save_tokens", "counter", "Tokens whose KV became findable in the host tier"),
        Metric("save_bytes", "counter", "Bytes copied out of engine pages"),
        Metric("save_seconds", "counter", "Seconds spent copying out of engine pages"),
        Metric("save_failed_blocks", "counter", "Blocks whose save failed and was rolled back"),
        Metric(
            "save_busy_blocks",
            "counter",
            "Blocks that a full staging area on a GPU refused; tried again with the next block",
        ),
        Metric("save_no_room_blocks", "counter", "Blocks not saved: everything else was in use"),
        Metric(
            "save_delayed_blocks",
            "counter",
            "Blocks that found a GPU's staging area full, counted again in every step they wait",
        ),
        Metric("staging_capacity_blocks", "gauge", "Blocks that saves may have in staging on GPUs"),
        Metric("staging_used_blocks", "gauge", "Blocks that saves have in staging on GPUs"),
        Metric("evicted_blocks", "counter", "Blocks that left a tier to make room"),
        Metric("promoted_blocks", "counter", "Blocks brought from a lower tier into host memory"),
        Metric(
            "promotion_slow_blocks",
            "counter",
            "Blocks not waited for: computing them is faster than the tier's recent speed",
        ),
        Metric(
            "promotion_timeouts",
            "counter",
            "Requests that stopped waiting for a tier before all blocks had arrived",
        ),
        Metric("promotion_wait_seconds", "counter", "Seconds that requests waited for a tier"),
        Metric("admitted_blocks", "counter", "Blocks chosen to be copied to a lower tier"),
        Metric("declined_blocks", "counter", "Blocks not copied to a lower tier: not worth it yet"),
        Metric("demoted_blocks", "counter", "Blocks that became findable in a lower tier"),
        Metric(
            "demotion_skipped_blocks",
            "counter",
            "Blocks chosen for a lower tier and not copied: it failed or did not keep up",
        ),
        Metric("restored_blocks", "counter", "Blocks of earlier processes that are findable again"),
        Metric("ssd_capacity_blocks", "gauge", "Blocks the SSD tier can hold"),
        Metric("ssd_used_blocks", "gauge", "Blocks in the SSD tier, being written included"),
        Metric(
            "ssd_off", "gauge", "1 while reading or writing SSD is off: failed, unheard, closed"
        ),
        Metric(
            "ssd_busy_blocks",
            "counter",
            "Blocks that SSD had no time for; those in host memory are offered to it again",
        ),
        Metric("ssd_failed", "counter", "Times SSD went off: errors, again and again"),
        Metric("ssd_unheard", "counter", "Times SSD went off: no answer, or none in time"),
        Metric("ssd_closed", "counter", "Times SSD went off for good: its lane has stopped"),
        Metric(
            "switches_refused",
            "counter",
            "Requests that were not cached because their options for the cache cannot be read",
        ),
        Metric(
            "events_unsaid_blocks",
            "counter",
            "Saved blocks that no event tells of: the engine has no name for them alone",
        ),
        Metric("reset", "counter", "Times the whole cache was emptied"),
        Metric(
            "late_results",
            "counter",
            "Unexpected reports of workers: repeated, or from before a reset",
        ),
        Metric(
            "switched_off", "gauge", "1 while the connector stays out: unsupported here, or failed"
        ),
        Metric("host_capacity_blocks", "gauge", "Blocks the host tier can hold"),
        Metric("host_used_blocks", "gauge", "Blocks in the host tier, being written included"),
        Metric("ssd_read_bytes", "counter", "Bytes read from slabs, headers included"),
        Metric("ssd_read_seconds", "counter", "Seconds of all threads in reads from slabs"),
        Metric("ssd_write_bytes", "counter", "Bytes written to slabs, headers included: wear"),
        Metric("ssd_write_seconds", "counter", "Seconds of all threads in writes to slabs"),
        Metric("ssd_verified_blocks", "counter", "Blocks read from SSD whose checksums were right"),
        Metric("ssd_corrupt_blocks", "counter", "Blocks found changed on SSD, and not used"),
        Metric("ssd_io_errors", "counter", "Reads and writes of slabs that failed"),
        Metric(
            "ssd_no_room_cells",
            "counter",
            "Cells, of which a rank has one or more in a block, that found no room on SSD",
        ),
        Metric("ssd_recovered_blocks", "counter", "Blocks of earlier processes found on SSD"),
    )
}


class Recorder(Protocol):
    """Where counts go."""

    def add(self, name: str, value: float = 1) -> None:
        """Add to the counter `name` of `METRICS`."""

    def set(self, name: str, value: float) -> None:
        """Set the gauge `name` of `METRICS`."""


class Counters:
    """A recorder that keeps what changed since it was last drained. Not thread safe."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._gauges: dict[str, float] = {}

    def add(self, name: str, value: float = 1) -> None:
        """Add to the counter `name`."""
        assert METRICS[name].kind == "counter"
        if value:
            self._values[name] = self._values.get(name, 0) + value

    def set(self, name: str, value: float) -> None:
        """Set the gauge `name`."""
        assert METRICS[name].kind == "gauge"
        if self._gauges.get(name) != value:
            self._gauges[name] = self._values[name] = value

    def drain(self) -> dict[str, float]:
        """Return what changed since the last drain: counters as differences, gauges as they are."""
        values, self._values = self._values, {}
        return values
