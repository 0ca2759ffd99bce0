"""Connects the two halves in one process: the engine builds both and gives neither to the other."""

from flexkv_connectors.session.orders import RankReport

__all__ = ["Mailbox", "mailbox_of"]


class Mailbox:
    """Reports on their way to the scheduler half of the same process.

    Thread: that of the engine's executor, which calls both halves.
    """

    def __init__(self, arguments: object) -> None:
        self._arguments = arguments  # keeps their id from being reused
        self._reports: list[RankReport] = []
        self.refusal = ""
        """Why a rank takes no part any more, in one clause; empty while all do."""

    def post(self, reports: list[RankReport]) -> None:
        """Add reports."""
        self._reports += reports
        refusals = (report.refusal for report in reports if report.refusal)
        self.refusal = self.refusal or next(refusals, "")

    def take(self) -> list[RankReport]:
        """Return all reports since the last call."""
        reports, self._reports = self._reports, []
        return reports


_mailboxes: dict[int, Mailbox] = {}


def mailbox_of(arguments: object) -> Mailbox:
    """Return the one mailbox of the engine that has these arguments.

    The engine gives the same object to both halves, each in a thread of its own; whichever comes
    first makes the mailbox, and neither waits for the other.
    """
    return _mailboxes.setdefault(id(arguments), Mailbox(arguments))
