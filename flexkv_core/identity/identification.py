"""Finds what checkpoints hold, in the background."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flexkv_core.identity.checkpoint import Checkpoint

__all__ = ["Identification"]


class Identification:
    """Finds what checkpoints hold, on a thread of its own if it is not remembered."""

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        directories: Sequence[Path],
        started_s: float,
        then: Callable[[Mapping[str, str]], None],
    ) -> None:
        """Begin."""

    def close(self) -> None:
        """Stop soon; `then` is not called afterwards."""

    def join(self) -> None:
        """Wait until it has ended."""
