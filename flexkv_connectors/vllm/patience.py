"""How long an idle engine is kept stepping for a report that may never come."""

import logging
import time
from collections.abc import Callable

__all__ = ["Patience"]

logger = logging.getLogger(__name__)


class Patience:
    """Says whether waiting still makes sense: until nothing has been heard for `limit_s`.

    Thread: the scheduler's.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._since: float | None = None

    def reward(self) -> None:
        """Note that something was heard."""
        self._since = None

    def lasts(self, *, waiting: bool) -> bool:
        """Return whether to go on waiting; starts the clock if `waiting`, stops it if not."""
        if not waiting:
            self._since = None
            return False
        now = self._clock()
        if self._since is None:
            self._since = now
        return now - self._since < self._limit_s
