"""How long this engine takes to compute a block: what loading it has to beat."""

import math
from collections import deque

from flexkv_core.control.hierarchy.rate import Rate

__all__ = ["PrefillSpeed"]

_MIN_TOKENS = 64
"""Steps with fewer tokens are decoding, which says nothing about prefill."""


class PrefillSpeed:
    """Tokens a second over the engine's last prefill steps.

    That attention takes longer at the end of a long prompt is left out, so the speed is too high
    there: waiting for a tier then ends too early, not too late. It is never forgotten: an engine
    that was idle computes as fast as before.

    Thread: the scheduler's.
    """

    def __init__(self) -> None:
        self._rate = Rate(memory_s=math.inf)
        self._steps: deque[tuple[int, float]] = deque()
        """Tokens and start times of the steps that have not ended; steps may overlap."""

        self._ended_s = 0.0

    def begin_step(self, num_tokens: int, now_s: float) -> None:
        """Note that a step with `num_tokens` tokens is scheduled; one without any is no step."""
        if num_tokens:
            self._steps.append((num_tokens, now_s))

    def end_step(self, now_s: float) -> None:
        """Note that the oldest step has ended."""
        if not self._steps:
            return
        num_tokens, begin_s = self._steps.popleft()
        if num_tokens >= _MIN_TOKENS:
            self._rate.note(num_tokens, now_s - max(begin_s, self._ended_s), now_s)
        self._ended_s = now_s

    def seconds_for(self, num_tokens: int, now_s: float) -> float | None:
        """Return how long computing `num_tokens` takes, None before the first prefill."""
        return self._rate.seconds_for(num_tokens, now_s)
