"""The one place where an unexpected exception stops: the border to an engine.

A cache that fails must cost its hits and nothing else. Every hook that an engine calls goes
through a barrier; the first exception that nobody expected switches this half of the connector
off for good, and from then on the engine gets the answer that promises nothing.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flexkv_core.errors import FlexKVError

__all__ = ["FaultBarrier", "nothing", "refusals_in_one_line"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Log why the engine does not start in a line of its own: engines bury it in tracebacks."""
    try:
        yield
    except FlexKVError as error:
        logger.critical("connector.refused: %s", error)
        raise


def nothing() -> None:
    """Answer a hook that expects no answer."""


class FaultBarrier:
    """Runs hooks; once switched off, answers for them.

    Thread: any; hooks that fail at the same time may each say so.
    """

    def __init__(self, without: str = "KV caching") -> None:
        """Stay on.

        Args:
            without: What the engine goes on without once this is off.
        """
        self._without = without
        self.reason = ""
        """Why the connector is off, in one clause; empty while it is on."""

    def switch_off(self, reason: str) -> None:
        """Stop running hooks, for `reason`. Said once; later reasons are not."""
        if not self.reason:
            self.reason = reason
            logger.warning("connector.off: serving without %s, because %s", self._without, reason)

    def run(self, hook: Callable[[], T], instead: Callable[[], T]) -> T:
        """Return `hook()`, or `instead()` if it fails or the connector is off.

        Args:
            hook: What the engine asked for.
            instead: The harmless answer. It still has to keep promises made before the failure,
                so it must not depend on what may be broken.
        """
        if not self.reason:
            try:
                return hook()
            except Exception as error:
                logger.exception("connector.failed: please report the lines below")
                self.switch_off(f"of an unexpected error: {type(error).__name__}: {error}")
        return instead()
