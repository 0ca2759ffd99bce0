"""What the SSD tier may use."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SsdOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdOptions:
    """Where one rank's part of the tier is, and how much space it may take."""

    directories: tuple[Path, ...]
    """At least one; blocks are spread over all of them evenly."""

    quota_bytes: int
    """Size of this rank's slabs together, over all directories and columns."""

    directory_cap_bytes: int | None = None
    """Size of all slabs in one directory, of all processes; None: only leftovers are limited."""

    has_followers: bool = False
    """Other processes of the engine read what this rank writes: `Follower`."""

    leftover_bytes: int = 0
    """Size of the unused slabs that may stay in one directory, if there is no cap."""
