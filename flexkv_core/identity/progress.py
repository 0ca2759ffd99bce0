"""Logs the progress of long work."""

import logging
import time
from collections.abc import Callable, Sequence

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30.0
_LOG_EVERY_PART = 0.1


class Progress:
    """Logs one line at the start, one at the end, and one per tenth of the work in between.

    Thread: the one that works.
    """

    def __init__(self, sizes: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with the hashing of files of `sizes` in bytes."""
        self._num_files = len(sizes)
        self._num_bytes = sum(sizes)
        self._done = self._logged = 0
        self._clock = clock
        self._begin_s = self._logged_s = clock()
        if sizes:
            logger.info("identity.hashing files=%d gb=%.1f", self._num_files, self._gb)

    @property
    def _gb(self) -> float:
        return self._num_bytes / 1e9

    def add(self, num_bytes: int) -> None:
        """Note that `num_bytes` more are done."""
        self._done += num_bytes
        now_s = self._clock()
        is_due = self._done - self._logged >= _LOG_EVERY_PART * self._num_bytes
        if is_due and now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged, self._logged_s = self._done, now_s
            logger.info("identity.hashing done_gb=%.1f of_gb=%.1f", self._done / 1e9, self._gb)

    def end(self) -> None:
        """Note that all is done."""
        if self._num_files:
            seconds = self._clock() - self._begin_s
            logger.info(
                "identity.hashed files=%d gb=%.1f s=%.1f", self._num_files, self._gb, seconds
            )
