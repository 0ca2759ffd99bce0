"""The loads that an engine counts on, until it has been told how they ended.

A load that is never reported leaves its request waiting for ever, and one that is reported twice,
or that nobody asked for, kills the engine. So promises are kept apart from the code that fulfils
them: whatever breaks there, this still knows what to report.
"""

from collections.abc import Collection, Sequence

from flexkv_core.block.types import RequestId

__all__ = ["Promises"]


class Promises:
    """One rank's promised loads, and how they ended. Thread: the worker's."""

    def __init__(self) -> None:
        self._open: dict[RequestId, Sequence[int]] = {}
        self._finished: set[RequestId] = set()
        self._failed_pages: set[int] = set()

    @property
    def open(self) -> Collection[RequestId]:
        """The requests whose load has not ended."""
        return self._open.keys()

    def make(self, request_id: RequestId, page_ids: Sequence[int]) -> None:
        """Note that `page_ids` are to be filled for `request_id`."""
        self._open[request_id] = page_ids

    def settle(self, request_id: RequestId, num_good_pages: int) -> None:
        """Note that a load has ended and that its first `num_good_pages` pages are filled."""
        page_ids = self._open.pop(request_id)
        self._failed_pages.update(page_ids[num_good_pages:])
        self._finished.add(request_id)

    def settle_all_as_failed(self) -> None:
        """End every open promise with nothing filled."""
        for request_id in list(self._open):
            self.settle(request_id, 0)

    def take_finished(self) -> set[RequestId]:
        """Return the requests whose loads have ended since the last call, well or badly."""
        finished, self._finished = self._finished, set()
        return finished

    def take_failed_pages(self) -> set[int]:
        """Return the pages that were promised and hold nothing, since the last call."""
        failed, self._failed_pages = self._failed_pages, set()
        return failed
