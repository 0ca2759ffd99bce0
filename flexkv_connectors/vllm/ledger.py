"""The loads a worker owes its engine an answer for.

A load that is never reported leaves its request waiting for ever, and one that is reported twice,
or never was asked for, kills the engine. So promises are kept apart from the code that fulfils
them: whatever breaks there, this still knows what to report.
"""

from collections.abc import Sequence

__all__ = ["LoadLedger"]


class LoadLedger:
    """Promised loads, and what has to be said about them at the end of a step."""

    def __init__(self, *, report_finished: bool) -> None:
        """Start without promises.

        Args:
            report_finished: Whether the engine waits to be told (asynchronous loads); for
                synchronous ones it only wants to hear of failures.
        """
        self._report_finished = report_finished
        self._promised: dict[str, Sequence[int]] = {}
        self._finished: set[str] = set()
        self._failed_pages: set[int] = set()

    @property
    def has_promises(self) -> bool:
        """Whether a load has not ended."""
        return bool(self._promised)

    def promise(self, request_id: str, page_ids: Sequence[int]) -> None:
        """Note that `page_ids` are to be filled for `request_id`."""
        self._promised[request_id] = page_ids

    def settle(self, request_id: str, num_good_pages: int) -> None:
        """Note that a load has ended and that its first `num_good_pages` pages are filled."""
        page_ids = self._promised.pop(request_id)
        self._failed_pages.update(page_ids[num_good_pages:])
        if self._report_finished:
            self._finished.add(request_id)

    def settle_all_as_failed(self) -> None:
        """End every open promise with nothing filled."""
        for request_id in list(self._promised):
            self.settle(request_id, 0)

    def take_finished(self) -> set[str]:
        """Return the requests whose loads have ended since the last call, well or badly."""
        finished, self._finished = self._finished, set()
        return finished

    def take_failed_pages(self) -> set[int]:
        """Return the pages that were promised and hold nothing, since the last call."""
        failed, self._failed_pages = self._failed_pages, set()
        return failed
