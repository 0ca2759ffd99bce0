"""When to leave a failing tier alone, and when to try it again."""

import logging

__all__ = ["Health"]

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_RETRY_S = 30.0


class Health:
    """A circuit breaker for one direction of one tier: off after a few failures in a row.

    While it is off, one attempt is let through every 30 seconds, and the first that succeeds
    switches it on again. Each change is logged once.

    Thread: its owner's; `is_off` and `allows` any.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._num_failures = 0
        self._next_trial_s: float | None = None

    @property
    def is_off(self) -> bool:
        """Whether only trials are let through."""
        return self._next_trial_s is not None

    def allows(self, now_s: float) -> bool:
        """Return whether an attempt makes sense now."""
        next_trial_s = self._next_trial_s
        return next_trial_s is None or now_s >= next_trial_s

    def begin(self, now_s: float) -> None:
        """Note that an attempt begins; while off, the next one may do so 30 seconds later."""
        if self.is_off:
            self._next_trial_s = now_s + _RETRY_S

    def note(self, *, ok: bool, now_s: float) -> None:
        """Record how an attempt ended."""
        self._num_failures = 0 if ok else self._num_failures + 1
        if ok and self.is_off:
            self._next_trial_s = None
            logger.warning("tier.on: %s works again", self._subject)
        elif self._num_failures >= _MAX_FAILURES:
            self.switch_off(f"failed {self._num_failures} times in a row", now_s)

    def switch_off(self, reason: str, now_s: float) -> None:
        """Let only trials through until one succeeds."""
        if self.is_off:
            return
        self._next_trial_s = now_s + _RETRY_S
        logger.warning(
            "tier.off: %s %s; serving goes on without it, and it is tried again every %d s",
            self._subject,
            reason,
            _RETRY_S,
        )
