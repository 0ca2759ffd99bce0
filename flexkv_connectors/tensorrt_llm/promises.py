"""What a worker owes its engine: loads to fill, and word of requests that it asked about.

An id that is returned without having been handed in kills the engine, and one that never is leaves
its request waiting. A load that fails cannot be told at all. So promises are kept apart from the
code that fulfils them: whatever breaks there, this still knows what is owed.
"""

from collections.abc import Iterable

from flexkv_core.errors import BrokenPromiseError

__all__ = ["Promises"]


class Promises:
    """One rank's promises. Thread: that of the engine's executor."""

    def __init__(self, *, tells_loads: bool) -> None:
        """Start without promises.

        Args:
            tells_loads: Whether the engine waits to be told of loads (asynchronous ones).
        """
        self._tells_loads = tells_loads
        self._open: set[int] = set()
        """Requests with pages that are to be filled."""

        self._kept: set[int] = set()
        """Requests whose pages are filled, until the engine is told."""

        self._asked_loading: set[int] = set()
        self._asked_ending: set[int] = set()

    def make(self, requests: Iterable[int]) -> None:
        """Note that pages of these requests are to be filled."""
        requests = set(requests)
        self._open |= requests
        self._kept -= requests  # of an earlier allocation that the engine did not ask about

    def keep(self, requests: Iterable[int]) -> None:
        """Note that the pages of these requests are filled."""
        for request in requests:
            self._open.discard(request)
            if self._tells_loads:
                self._kept.add(request)

    def ask(self, loading: Iterable[int], ending: Iterable[int]) -> None:
        """Note what the engine hands in: requests that wait for a load, and that have ended."""
        self._asked_loading.update(loading)
        self._asked_ending.update(ending)

    def answer(self) -> tuple[list[int], list[int]]:
        """Return the ended and the loading requests whose pages nobody writes to any more.

        Each is returned once, and only after it was handed in.
        """
        ended = self._asked_ending - self._open
        loaded = self._asked_loading & self._kept
        self._asked_ending -= ended
        self._asked_loading -= loaded
        self._kept -= loaded
        return sorted(ended), sorted(loaded)

    @property
    def are_kept(self) -> bool:
        """Whether the engine counts on nothing that is not there."""
        return not self._open

    def require_kept(self) -> None:
        """Stop the engine if it counts on pages that nobody will fill.

        Raises:
            BrokenPromiseError: It does.
        """
        if self._open:
            msg = (
                f"the KV of requests {sorted(self._open)} was promised and cannot be loaded, and "
                "TensorRT-LLM has no way to be told: it has to stop"
            )
            raise BrokenPromiseError(msg)
