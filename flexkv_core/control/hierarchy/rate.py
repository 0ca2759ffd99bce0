"""A recently measured speed."""

import math

__all__ = ["Rate"]

_DECAY = 0.75
"""Weight of an earlier measurement relative to the next one."""

_MIN_EMPTY_S = 0.01
"""If nothing arrives in less time than this, that says nothing about the speed."""


class Rate:
    """A speed, smoothed over the last few measurements, and unknown when there is no recent one.

    A forgotten speed is measured again, so what was slow once gets another chance.

    Thread: its owner's.
    """

    def __init__(self, memory_s: float = 60.0) -> None:
        self._memory_s = memory_s
        self._amount = 0.0
        self._seconds = 0.0
        self._measured_s = -math.inf

    def note(self, amount: float, seconds: float, now_s: float) -> None:
        """Record that `amount`, perhaps zero, took `seconds`."""
        if not amount and seconds < _MIN_EMPTY_S:
            return
        weight = _DECAY if self._is_known(now_s) else 0.0
        self._amount = weight * self._amount + amount
        self._seconds = weight * self._seconds + seconds
        self._measured_s = now_s

    def seconds_for(self, amount: float, now_s: float) -> float | None:
        """Return how long `amount` takes at this speed, perhaps infinity; None if unknown."""
        if not self._is_known(now_s):
            return None
        return amount * self._seconds / self._amount if self._amount else math.inf

    def _is_known(self, now_s: float) -> bool:
        return now_s - self._measured_s < self._memory_s
