"""How long an idle engine is kept stepping for a report that may never come."""

import time
from collections.abc import Callable

__all__ = ["ReportTimeout"]


class ReportTimeout:
    """Expires once an engine has waited for `limit_s` without a report.

    Thread: the scheduler's.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._since: float | None = None

    def restart(self) -> None:
        """Note that a report came."""
        self._since = None

    def allows(self, *, waiting: bool) -> bool:
        """Return whether to go on waiting; starts the clock if `waiting`, stops it if not."""
        if not waiting:
            self._since = None
            return False
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since < self._limit_s
