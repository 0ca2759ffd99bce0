"""How fast something has lately been."""

import math

__all__ = ["Rate"]

_FADING = 0.75
"""What an earlier measurement weighs against the next one."""

_TELLING_S = 0.01
"""Where a deadline leaves less, that nothing came says nothing of the speed."""


class Rate:
    """A speed, smoothed over the last few measurements, and unknown when there is no recent one.

    A speed that is forgotten is measured again, so what was slow once gets another chance.

    Thread: its owner's.
    """

    def __init__(self, memory_s: float = 60.0) -> None:
        self._memory_s = memory_s
        self._amount = 0.0
        self._seconds = 0.0
        self._measured_s = -math.inf

    def note(self, amount: float, seconds: float, now_s: float) -> None:
        """Take in that `amount`, perhaps nothing, took `seconds`."""
        if not amount and seconds < _TELLING_S:
            return
        weight = _FADING if self._is_known(now_s) else 0.0
        self._amount = weight * self._amount + amount
        self._seconds = weight * self._seconds + seconds
        self._measured_s = now_s

    def seconds_for(self, amount: float, now_s: float) -> float | None:
        """Return how long `amount` takes at this speed, perhaps for ever; None if unknown."""
        if not self._is_known(now_s):
            return None
        return amount * self._seconds / self._amount if self._amount else math.inf

    def _is_known(self, now_s: float) -> bool:
        return now_s - self._measured_s < self._memory_s
