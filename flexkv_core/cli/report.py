"""What fsck reports on a slab, for people and machines. Names and values are those of the JSON."""

from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec

from flexkv_core.cli.slab_reader import Damage
from flexkv_core.cli.text import counted, printable

__all__ = ["Kind", "Problem", "SlabReport"]

_MAX_LINES = 20


class Kind(Enum):
    """What is wrong: with a cell, or with a slab as a whole."""

    CORRUPT_HEADER = "corrupt_header"
    CORRUPT_PAYLOAD = "corrupt_payload"
    FOREIGN_IDENTITY = "foreign_identity"
    UNREADABLE = "unreadable"
    OTHER_VERSION = "other_version"
    MISPLACED = "misplaced"
    ABANDONED = "abandoned"
    TRUNCATED_TAIL = "truncated_tail"
    WRONG_PERMISSIONS = "wrong_permissions"


_SENTENCES: Mapping[Kind, str] = {
    Kind.UNREADABLE: Damage.UNREADABLE.value,
    Kind.OTHER_VERSION: Damage.OTHER_VERSION.value,
    Kind.MISPLACED: Damage.MISPLACED.value,
    Kind.ABANDONED: "temporary, and no engine uses it",
    Kind.TRUNCATED_TAIL: "the file ends within a cell",
    Kind.WRONG_PERMISSIONS: "other users can read it or change its folders",
}


class Problem(msgspec.Struct, kw_only=True):
    """One problem."""

    kind: Kind
    slot: int | None = None
    """None for the slab as a whole."""

    repair: str | None = None
    """What was done; None if nothing."""

    def __str__(self) -> str:
        what = _SENTENCES.get(self.kind) or self.kind.value.replace("_", " ")
        where = "" if self.slot is None else f"slot {self.slot}: "
        done = "" if self.repair is None else f" -> {self.repair}"
        return f"{where}{what}{done}"


class SlabReport(msgspec.Struct, kw_only=True):
    """What fsck found in one slab."""

    path: str
    namespace: str
    column: str
    in_use: bool
    temporary: bool
    bytes_on_disk: int
    slots: int
    valid: int = 0
    empty: int = 0
    changing: int = 0
    duplicates: int = 0
    """Valid cells whose key an earlier slot of the same column already has."""

    orphans: int = 0
    """Valid cells whose parent is not in the same column."""

    problems: list[Problem]
    left_because: str | None = None
    """Why a repair was not tried, or stopped."""

    @property
    def num_left(self) -> int:
        """Problems that were not repaired."""
        return sum(problem.repair is None for problem in self.problems)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report for people."""
        counts = [f"{self.valid:,} valid", f"{self.empty:,} empty"]
        counts += [f"{self.changing:,} changing"] * bool(self.changing)
        counts += [counted(self.duplicates, "duplicate")] * bool(self.duplicates)
        counts += [counted(self.orphans, "orphan")] * bool(self.orphans)
        counts += ["in use"] * self.in_use + ["temporary"] * self.temporary
        yield f"{printable(self.path)}: {', '.join(counts)}\n"
        for problem in self.problems[:_MAX_LINES]:
            yield f"  {problem}\n"
        if (num_more := len(self.problems) - _MAX_LINES) > 0:
            yield f"  and {counted(num_more, 'more problem')}: --json has all of them\n"
        if self.left_because is not None:
            yield f"  {counted(self.num_left, 'problem')} left: {self.left_because}\n"
