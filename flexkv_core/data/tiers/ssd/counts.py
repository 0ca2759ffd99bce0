"""Counting from many threads."""

import threading

from flexkv_core.metrics import Counters

__all__ = ["Counts"]


class Counts:
    """Counters that any thread may add to; `take` returns what changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()

    def add(self, name: str, value: float = 1) -> None:
        """Add to the counter `name` of `metrics.METRICS`."""
        with self._lock:
            self._counters.add(name, value)

    def take(self) -> dict[str, float]:
        """Return what changed since the last call."""
        with self._lock:
            return self._counters.drain()
