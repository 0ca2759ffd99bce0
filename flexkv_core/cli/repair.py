"""Repairs one slab, under its lock: an engine that starts meanwhile uses others."""

import os

from flexkv_core.cli.cells import read_cell
from flexkv_core.cli.folders import SlabPath, lock, make_private, open_folder, open_slab, reason_of
from flexkv_core.cli.report import Kind, SlabReport
from flexkv_core.cli.slab_reader import EMPTY_PAGE, Damage, SlabInfo, read_slab, slot_offset
from flexkv_core.data.tiers.ssd.format import Superblock

__all__ = ["repair_slab"]


def repair_slab(path: SlabPath, report: SlabReport) -> None:
    """Repair the problems that `report` lists for the slab at `path`, and note there what was done.

    Everything is read again under the lock: what was found without it may be out of date.
    """
    try:
        with open_slab(path, os.O_RDWR) as number:
            if not lock(number):
                report.left_because = "in use"
                return
            slab = read_slab(number, path, in_use=False)
            if _is_useless(slab):
                _delete(number, path, report)
            else:
                _mend(number, path, slab, report)
                os.fsync(number)
    except OSError as error:
        report.left_because = reason_of(error)


def _is_useless(slab: SlabInfo) -> bool:
    """Return whether no engine will ever read the slab again, even if it is repaired."""
    if slab.damage is not None:
        return slab.damage is Damage.UNREADABLE
    return slab.superblock is not None and slab.superblock.is_temporary


def _delete(number: int, path: SlabPath, report: SlabReport) -> None:
    """Delete the locked slab at `path`, unless another file has its name by now."""
    with open_folder(path.directory, path.namespace, path.column) as folder:
        named = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if not os.path.samestat(named, os.fstat(number)):
            return
        os.unlink(path.name, dir_fd=folder)
    for problem in report.problems:
        problem.repair = "slab deleted"


def _mend(number: int, path: SlabPath, slab: SlabInfo, report: SlabReport) -> None:
    """Repair what can be repaired in a slab that stays."""
    for problem in report.problems:
        if problem.kind is Kind.WRONG_PERMISSIONS:
            make_private(number, path)
            problem.repair = "taken from other users"
        elif slab.superblock is None or slab.damage is not None:
            continue
        elif problem.kind is Kind.TRUNCATED_TAIL:
            os.ftruncate(number, slot_offset(slab.superblock, slab.num_slots))
            problem.repair = "cut off"
        elif problem.slot is not None:
            problem.repair = _empty_slot(number, slab.superblock, problem.slot)


def _empty_slot(number: int, superblock: Superblock, slot: int) -> str:
    """Clear the header of a bad cell; return what was done."""
    if not read_cell(number, superblock, slot).verdict.is_bad:
        return "written again meanwhile"
    os.pwrite(number, EMPTY_PAGE, slot_offset(superblock, slot))
    return "slot emptied"
