"""How the command writes: sizes, times, tables, JSON. ASCII only, no colours.

Names on the disk and texts in slabs are untrusted: none of them reaches a terminal unescaped.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

__all__ = ["Progress", "bytes_text", "counted", "printable", "table", "time_text", "write_json"]

_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_PROGRESS_INTERVAL_S = 0.2
_LAST_SECOND = 253_402_300_799  # of the year 9999; times on file systems can be later


def printable(text: str) -> str:
    """Return `text` with everything but printable ASCII escaped as Python writes it."""
    return "".join(
        character if " " <= character <= "~" else character.encode("unicode_escape").decode()
        for character in text
    )


def bytes_text(num_bytes: int) -> str:
    """Return a size for people, such as "1.5 GiB"."""
    for unit, unit_bytes in _UNITS:
        if num_bytes >= unit_bytes:
            return f"{num_bytes / unit_bytes:.1f} {unit}"
    return f"{num_bytes} B"


def counted(number: int, noun: str) -> str:
    """Return `noun` with its number, such as "1,204 cells"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def time_text(seconds: int) -> str:
    """Return a time since the epoch for people, in UTC."""
    shown = min(max(seconds, 0), _LAST_SECOND)
    return datetime.fromtimestamp(shown, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` as lines with left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "".join(f"  {line}\n" for line in lines)


def write_json(report: Mapping[str, object]) -> None:
    """Write `report` to standard output as one object."""
    # The module escapes all but printable ASCII, msgspec does not.
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


class Progress:
    """One line on standard error with the progress of a long command, if that is a terminal."""

    def __init__(self, num_slabs: int) -> None:
        self._num_slabs = num_slabs
        self._num_begun = 0
        self._read_bytes = 0
        self._shown_s = 0.0
        self._is_terminal = sys.stderr.isatty()

    def begin_slab(self) -> None:
        """Note that the next slab is being read."""
        self._num_begun += 1

    def advance(self, num_bytes: int) -> None:
        """Note that `num_bytes` more have been read."""
        self._read_bytes += num_bytes
        now_s = time.monotonic()
        if self._is_terminal and now_s - self._shown_s >= _PROGRESS_INTERVAL_S:
            self._shown_s = now_s
            read = bytes_text(self._read_bytes)
            self._show(f"slab {self._num_begun} of {self._num_slabs}, {read} read")

    def end(self) -> None:
        """Clear the line."""
        if self._is_terminal:
            self._show("")

    @staticmethod
    def _show(line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
