"""`flexkv fsck`: reads and verifies everything, and repairs it if asked."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from flexkv_core.block.types import BlockKey
from flexkv_core.cli.folders import Oddity, SlabPath, find_slabs, reason_of
from flexkv_core.cli.repair import repair_slab
from flexkv_core.cli.report import SlabReport
from flexkv_core.cli.text import Progress, bytes_text, counted, printable, write_json
from flexkv_core.cli.verify import verify_slab
from flexkv_core.data.tiers.ssd.format import CellHeader
from flexkv_core.errors import ConfigError

__all__ = ["SCHEMA_VERSION", "check_directories"]

SCHEMA_VERSION = 1
"""Of the JSON: keys may be added; changing the meaning of a key needs a new version."""

_CLEAN, _LEFT, _REPAIRED = 0, 1, 3


class _Result(msgspec.Struct, kw_only=True):
    """All that was found: the JSON, except for its first keys."""

    slabs: list[SlabReport]
    not_read: list[Oddity]

    @property
    def num_problems(self) -> int:
        return sum(len(slab.problems) for slab in self.slabs) + len(self.not_read)

    @property
    def num_left(self) -> int:
        return sum(slab.num_left for slab in self.slabs) + len(self.not_read)

    @property
    def exit_status(self) -> int:
        if self.num_left:
            return _LEFT
        return _REPAIRED if self.num_problems else _CLEAN


def check_directories(
    directories: Sequence[Path], *, prefix: str, wants_repair: bool, as_json: bool
) -> int:
    """Verify what is in `directories`, write a report to standard output; return the exit status.

    Cost: reads everything once; about 400 bytes of memory per cell of the largest column.

    Raises:
        ConfigError: `prefix` is not empty, and no namespace begins with it.
    """
    oddities: list[Oddity] = []
    paths = [path for each in directories for path in find_slabs(each, oddities, prefix)]
    if prefix and not paths:
        msg = f"no namespace begins with {prefix!r}: expected some of the 16 digits that ls shows"
        raise ConfigError(msg)
    progress = Progress(len(paths))
    slabs = list(_check(paths, oddities, progress, wants_repair=wants_repair))
    progress.end()
    result = _Result(slabs=slabs, not_read=oddities)
    if as_json:
        _write_json(result)
    else:
        sys.stdout.writelines(_lines(result))
    return result.exit_status


def _check(
    paths: Iterable[SlabPath], oddities: list[Oddity], progress: Progress, *, wants_repair: bool
) -> Iterator[SlabReport]:
    """Yield the report of every slab, by namespace and column."""
    for _, group in groupby(sorted(paths, key=_column_of), _column_of):
        column = []
        for path in group:
            progress.begin_slab()
            try:
                report, headers = verify_slab(path, progress)
            except FileNotFoundError:
                continue  # an engine has just deleted it
            except OSError as error:
                oddities.append(Oddity(str(path), reason_of(error)))
                continue
            if wants_repair and report.problems:
                repair_slab(path, report)
            column.append((report, headers))
        _count_relations(column)
        yield from (report for report, _ in column)


def _column_of(path: SlabPath) -> tuple[str, str]:
    return path.namespace, path.column


def _count_relations(column: Sequence[tuple[SlabReport, Sequence[CellHeader]]]) -> None:
    """Count duplicates and orphans among the valid cells of all slabs of a column.

    Cells of different generations have different identities, and are unrelated.
    """
    known: set[tuple[bytes, BlockKey]] = set()
    for report, headers in column:
        for header in headers:
            cell = header.identity, header.key
            report.duplicates += cell in known
            known.add(cell)
    for report, headers in column:
        report.orphans = sum(
            header.parent is not None and (header.identity, header.parent) not in known
            for header in headers
        )


def _write_json(result: _Result) -> None:
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": "fsck",
        "problems": result.num_problems,
        "problems_left": result.num_left,
        "exit_status": result.exit_status,
        "slabs": result.slabs,
        "not_read": result.not_read,
    }
    write_json(msgspec.to_builtins(report))


def _lines(result: _Result) -> Iterator[str]:
    """Yield the lines of the report for people."""
    for slab in result.slabs:
        yield from slab.lines()
    for oddity in result.not_read:
        yield f"{printable(oddity.path)}: not read: {printable(oddity.reason)}\n"
    slabs = counted(len(result.slabs), "slab")
    cells = counted(sum(slab.valid for slab in result.slabs), "valid cell")
    on_disk = bytes_text(sum(slab.bytes_on_disk for slab in result.slabs))
    yield f"{slabs}, {cells}, {on_disk} on disk: "
    if not result.num_problems:
        yield "clean\n"
        return
    problems = counted(result.num_problems, "problem")
    num_repaired = result.num_problems - result.num_left
    yield f"{problems}, {num_repaired} repaired, {result.num_left} left\n"
