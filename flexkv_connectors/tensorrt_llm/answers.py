"""What TensorRT-LLM asks each rank after a step, and what the rank answers.

It names the requests that wait for a load, and those that have ended, and wants each of them back
once their pages are not written to any more. An id that is returned without having been named kills
the engine, and one that is never returned leaves its request waiting. There is no answer for a load
that has failed.
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
        """Requests whose load has ended, until the engine has its answer."""

        self._asked_loading: set[RequestId] = set()
        self._asked_ending: set[RequestId] = set()

    def ask(self, loading: Iterable[int], ending: Iterable[int]) -> None:
        """Note the requests that the engine names: waiting for a load, and ended."""
        self._asked_loading.update(RequestId(str(number)) for number in loading)
        self._asked_ending.update(RequestId(str(number)) for number in ending)

    def answer(self) -> tuple[list[int], list[int]]:
        """Return the ended and the loading requests whose pages are not written to any more.

        Each is returned once, and only after it was named. If its pages were taken away and its
        load was promised again, it is returned when that load has ended.
        """
        self._loaded |= self._promises.take_finished()
        ended = self._asked_ending.difference(self._promises.open)
        loaded = (self._asked_loading & self._loaded).difference(self._promises.open)
        self._asked_ending -= ended
        self._asked_loading -= loaded
        self._loaded -= loaded
        return sorted(map(int, ended)), sorted(map(int, loaded))

    def require_loaded(self) -> None:
        """Stop the engine if it is about to compute with pages that will not be filled.

        Forgets the loads that have ended: the engine asks for no answer about loads within a step.

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
