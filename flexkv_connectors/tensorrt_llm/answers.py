"""What TensorRT-LLM asks a rank at the end of a step, and what it is answered.

It hands in the requests that wait for a load, and those that have ended, and wants each of them
back once nobody writes to its pages any more. An id that is returned without having been handed in
kills it, and one that never is leaves its request waiting. Of a load that fails it cannot be told.
"""

from collections.abc import Iterable

from flexkv_connectors.session.promises import Promises
from flexkv_core.block.types import RequestId
from flexkv_core.errors import BrokenPromiseError

__all__ = ["Answers"]


class Answers:
    """One rank's answers. Thread: that of the engine's executor."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises
        self._loaded: set[RequestId] = set()
        """Requests whose load has ended, until the engine is told."""

        self._asked_loading: set[RequestId] = set()
        self._asked_ending: set[RequestId] = set()

    def ask(self, loading: Iterable[int], ending: Iterable[int]) -> None:
        """Note what the engine hands in: requests that wait for a load, and that have ended."""
        self._asked_loading.update(RequestId(str(number)) for number in loading)
        self._asked_ending.update(RequestId(str(number)) for number in ending)

    def answer(self) -> tuple[list[int], list[int]]:
        """Return the ended and the loading requests whose pages nobody writes to any more.

        Each is returned once, and only after it was handed in. One whose pages were taken away
        and whose load was promised anew is returned when that load has ended.
        """
        self._loaded |= self._promises.take_finished()
        ended = self._asked_ending.difference(self._promises.open)
        loaded = (self._asked_loading & self._loaded).difference(self._promises.open)
        self._asked_ending -= ended
        self._asked_loading -= loaded
        self._loaded -= loaded
        return sorted(map(int, ended)), sorted(map(int, loaded))

    def require_loaded(self) -> None:
        """Stop the engine if it is about to compute on pages that nobody will fill.

        The loads that have ended are done with: of those within a step the engine does not ask.

        Raises:
            BrokenPromiseError: It is.
        """
        if self._promises.open:
            msg = (
                f"the KV of requests {sorted(map(int, self._promises.open))} was promised and "
                "cannot be loaded, and TensorRT-LLM has no way to be told: it has to stop"
            )
            raise BrokenPromiseError(msg)
        self._promises.take_finished()
