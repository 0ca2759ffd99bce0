"""Verifies one slab, without changing it."""

from collections.abc import Iterator

from flexkv_core.cli.cells import CellInfo, Verdict, filled_slots, read_again, read_cell
from flexkv_core.cli.folders import SlabPath, is_locked, open_slab
from flexkv_core.cli.report import Kind, Problem, SlabReport
from flexkv_core.cli.slab_reader import Damage, SlabInfo, read_slab
from flexkv_core.cli.text import Progress
from flexkv_core.data.tiers.ssd.format import CellHeader, slot_bytes

__all__ = ["verify_slab"]


def verify_slab(path: SlabPath, progress: Progress) -> tuple[SlabReport, list[CellHeader]]:
    """Read everything in the slab at `path`; return its report, and the headers of valid cells.

    Raises:
        OSError: It cannot be opened.
    """
    with open_slab(path) as number:
        slab = read_slab(number, path, in_use=is_locked(number))
        if slab.damage is Damage.UNREADABLE:
            # An engine may have been creating it.
            slab = read_slab(number, path, in_use=is_locked(number))
        report = _report(path, slab)
        headers = []
        for cell in _cells(number, slab, progress):
            _count(report, cell)
            if cell.verdict is Verdict.VALID and cell.header is not None:
                headers.append(cell.header)
    return report, headers


def _report(path: SlabPath, slab: SlabInfo) -> SlabReport:
    """Return the report of a slab with empty slots."""
    return SlabReport(
        path=str(path),
        namespace=path.namespace,
        column=path.column,
        in_use=slab.in_use,
        temporary=slab.superblock is not None and slab.superblock.is_temporary,
        bytes_on_disk=slab.bytes_on_disk,
        slots=slab.num_slots,
        empty=slab.num_slots,
        problems=[Problem(kind=kind) for kind in _problems(slab)],
    )


def _problems(slab: SlabInfo) -> Iterator[Kind]:
    """Yield what is wrong with the slab as a whole."""
    if slab.damage is not None and slab.damage is not Damage.UNFINISHED:
        yield Kind[slab.damage.name]
    elif slab.superblock is not None and slab.superblock.is_temporary and not slab.in_use:
        yield Kind.ABANDONED
    if slab.has_cut_cell:
        yield Kind.TRUNCATED_TAIL
    if not slab.is_private:
        yield Kind.WRONG_PERMISSIONS


def _cells(number: int, slab: SlabInfo, progress: Progress) -> Iterator[CellInfo]:
    """Yield every slot that is not empty; reread bad ones last, as an engine may have finished."""
    if slab.superblock is None:
        return
    suspects = []
    for slot in filled_slots(number, slab):
        cell = read_cell(number, slab.superblock, slot)
        progress.advance(slot_bytes(slab.superblock.cell_bytes))
        if cell.verdict.is_bad:
            suspects.append(cell)
        else:
            yield cell
    for suspect in suspects:
        yield read_again(number, slab.superblock, suspect)


def _count(report: SlabReport, cell: CellInfo) -> None:
    """Count a cell in a slot that was counted as empty."""
    report.empty -= cell.verdict is not Verdict.EMPTY
    report.valid += cell.verdict is Verdict.VALID
    report.changing += cell.verdict is Verdict.CHANGING
    if cell.verdict.is_bad:
        report.problems.append(Problem(kind=Kind(cell.verdict.value), slot=cell.slot))
