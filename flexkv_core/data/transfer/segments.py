"""Turns the ids in a plan into pieces for one strided copy each, checked before any byte moves."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexkv_core.plan import EnginePages, HostSlots, TransferPlan

__all__ = ["Limits", "Segment", "find_page_problem", "find_slot_problem", "segments_of"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the ids in a plan."""

    num_pages: int
    pages_per_block: int


class Segment(NamedTuple):
    """Pages that are adjacent in the engine's pool and in one block."""

    pages: slice
    slot: int
    in_block: slice
    """Which pages of the block in `slot` they are."""


def find_slot_problem(plan: TransferPlan, slots: HostSlots, num_slots: int) -> str:
    """Return a sentence on what is wrong with a plan's slots, or ""."""
    if plan.num_blocks < 1:
        return f"a plan of {plan.num_blocks} blocks moves nothing"
    if len(slots.slots) != 8 * plan.num_blocks:
        return f"the plan has {len(slots.slots)} bytes of slot ids for {plan.num_blocks} blocks"
    return _find_outsider("slot", np.frombuffer(slots.slots, np.int64), num_slots)


def find_page_problem(plan: TransferPlan, pages: EnginePages, limits: Limits) -> str:
    """Return a sentence on what is wrong with a plan's pages, or ""."""
    per_block = limits.pages_per_block
    whole = plan.num_blocks * per_block
    end = pages.first_page + len(pages.page_ids)
    if not (0 <= pages.first_page < per_block and whole - per_block < end <= whole):
        return f"pages {pages.first_page} to {end} do not span {plan.num_blocks} x {per_block}"
    if plan.source is pages and len(pages.page_ids) != whole:
        return f"only whole blocks are saved: got {len(pages.page_ids)} pages, expected {whole}"
    return _find_outsider("page", np.asarray(pages.page_ids, np.int64), limits.num_pages)


def segments_of(pages: EnginePages, slots: HostSlots, pages_per_block: int) -> list[Segment]:
    """Cut a run of pages wherever a block ends or page ids are not consecutive."""
    ids = np.asarray(pages.page_ids, np.int64)
    slot_ids = np.frombuffer(slots.slots, np.int64)
    positions = np.arange(pages.first_page, pages.first_page + len(ids))
    begins = positions % pages_per_block == 0
    begins[:1] = True
    begins[1:] |= ids[1:] != ids[:-1] + 1
    starts = np.flatnonzero(begins)
    counts = np.diff(starts, append=len(ids))
    firsts = ids[starts]
    blocks, offsets = np.divmod(positions[starts], pages_per_block)
    columns = (firsts, counts, slot_ids[blocks], offsets)
    return [
        Segment(slice(first, first + count), slot, slice(offset, offset + count))
        for first, count, slot, offset in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _find_outsider(what: str, ids: NDArray[np.int64], limit: int) -> str:
    outside = ids[(ids < 0) | (ids >= limit)]
    return f"{what} id {outside[0]} is not in 0 to {limit - 1}" if outside.size else ""
