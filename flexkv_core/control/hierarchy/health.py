"""When to leave a tier alone, and when to try it again."""

import logging
import math
from collections.abc import Callable
from typing import Literal

from flexkv_core.plan import Status

__all__ = ["Health"]

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
_RETRY_S = 30.0

_METRICS = {"failed": "ssd_failed", "unheard": "ssd_unheard", "closed": "ssd_closed"}
"""What counts the times it went off, by state."""


class Health:
    """Whether one direction of one tier is used, and why not.

    - **busy**: it has enough to do, and refuses more. That is no failure.
    - **failed**: attempts end with errors, three in a row. Off, but for a trial every 30 seconds;
      the first that succeeds switches it on again.
    - **unheard**: no answer came while one could have come. The same.
    - **closed**: nothing will be moved any more. Off for good.

    Each change is logged once, under the name of the state, and each time off is counted.

    Thread: its owner's; `is_off` and `allows` any.
    """

    def __init__(self, subject: str, count: Callable[[str], None]) -> None:
        """Begin well.

        Args:
            subject: What is used, for the log: "reading from tier ssd".
            count: Adds 1 to a counter of `metrics.METRICS`.
        """
        self._subject = subject
        self._count = count
        self._state: Literal["", "failed", "unheard", "closed"] = ""
        self._is_busy = False
        self._num_failures = 0
        self._next_trial_s = -math.inf

    @property
    def is_off(self) -> bool:
        """Whether nothing but trials is let through."""
        return bool(self._state)

    def allows(self, now_s: float) -> bool:
        """Return whether an attempt makes sense now."""
        return now_s >= self._next_trial_s

    def begin(self, now_s: float) -> None:
        """Note that an attempt begins; while off, the next one may do so 30 seconds later."""
        if self.is_off:
            self._next_trial_s = max(self._next_trial_s, now_s + _RETRY_S)

    def note(self, status: Status, now_s: float) -> None:
        """Record how an attempt ended."""
        match status:
            case Status.BUSY:
                self._note_busy()
            case Status.CLOSED:
                self._switch_off("closed", "is closed", math.inf)
            case Status.TIMEOUT:
                self._note_failure("unheard", "did not answer in time", now_s)
            case Status.ERROR:
                self._note_failure("failed", "failed", now_s)
            case _:
                self._note_answer()

    def note_silence(self, now_s: float) -> None:
        """Record that no answer came while one could have come."""
        self._switch_off("unheard", "does not answer", now_s + _RETRY_S)

    def _note_busy(self) -> None:
        if not self._is_busy:
            logger.info("tier.busy: %s has to wait", self._subject)
        self._is_busy = True

    def _note_answer(self) -> None:
        self._is_busy = False
        self._num_failures = 0
        if self._state in {"failed", "unheard"}:
            self._state, self._next_trial_s = "", -math.inf
            logger.warning("tier.on: %s works again", self._subject)

    def _note_failure(self, state: Literal["failed", "unheard"], what: str, now_s: float) -> None:
        self._num_failures += 1
        if self._num_failures >= _MAX_FAILURES:
            reason = f"{what} {self._num_failures} times in a row"
            self._switch_off(state, reason, now_s + _RETRY_S)

    def _switch_off(
        self, state: Literal["failed", "unheard", "closed"], reason: str, next_trial_s: float
    ) -> None:
        """Stop using it; what is off already can only be closed."""
        if self._state == "closed" or (self._state and state != "closed"):
            return
        self._state, self._next_trial_s = state, next_trial_s
        self._count(_METRICS[state])
        logger.warning(
            "tier.off state=%s: %s %s; serving goes on without it, %s",
            state,
            self._subject,
            reason,
            "for good" if state == "closed" else f"and it is tried again every {_RETRY_S:.0f} s",
        )
