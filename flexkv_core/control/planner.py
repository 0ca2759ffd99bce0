"""What moves from where to where: pure functions of leases and reservations.

None of them changes anything or reads a clock: a deadline is passed through. Each returns None if
a failed write, a drop or a reset removed some of the blocks since they were claimed, and raises
LeaseError for a lease or reservation that is no longer open.
"""

from typing import NamedTuple

from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.control.index.node import Entry
from flexkv_core.control.lease import Lease, Reservation
from flexkv_core.errors import LeaseError
from flexkv_core.plan import (
    SLOT_BYTES,
    Endpoint,
    EnginePages,
    HostSlots,
    StoredBlocks,
    TransferPlan,
)

__all__ = ["Ticket", "plan_copy", "plan_get", "plan_put"]


class Ticket(NamedTuple):
    """The identity of a plan to be made, and its deadline."""

    job_id: JobId
    epoch: int
    deadline_s: float | None


def plan_get(
    ticket: Ticket, lease: Lease, pages: EnginePages, first_block: int, num_blocks: int
) -> TransferPlan | None:
    """Load blocks of `lease` into engine pages."""
    lease.expect_open()
    end_block = first_block + num_blocks
    _check_range(lease, first_block, end_block)
    source = _locate(lease.entry, first_block, end_block)
    return _plan(ticket, source, pages, num_blocks)


def plan_put(ticket: Ticket, reservation: Reservation, pages: EnginePages) -> TransferPlan | None:
    """Save engine pages as the blocks of `reservation`."""
    reservation.expect_open()
    entry, end_block = reservation.write.entry, reservation.end_block
    target = _locate(entry, reservation.first_block, end_block)
    return _plan(ticket, pages, target, reservation.num_blocks)


def plan_copy(ticket: Ticket, lease: Lease, reservation: Reservation) -> TransferPlan | None:
    """Copy the blocks of `reservation` from the tier of `lease`, which holds them all."""
    lease.expect_open()
    reservation.expect_open()
    first_block, end_block = reservation.first_block, reservation.end_block
    _check_range(lease, first_block, end_block)
    source = _locate(lease.entry, first_block, end_block)
    target = _locate(reservation.write.entry, first_block, end_block)
    if source and target:
        _check_same_chain(lease, reservation)
    return _plan(ticket, source, target, reservation.num_blocks)


def _check_range(lease: Lease, first_block: int, end_block: int) -> None:
    """Reject blocks that `lease` does not hold.

    Raises:
        LeaseError: The range is empty or not inside the lease.
    """
    if not 0 <= first_block < end_block <= lease.num_blocks:
        msg = (
            f"blocks {first_block} to {end_block} of request {lease.request_id!r} were asked for, "
            f"but its lease holds 0 to {lease.num_blocks}: plan only blocks that were matched"
        )
        raise LeaseError(msg)


def _check_same_chain(lease: Lease, reservation: Reservation) -> None:
    """Reject a copy of one chain's blocks over another's. Equal keys prove equal blocks before.

    Raises:
        LeaseError: The last blocks to copy differ.
    """
    last_block = reservation.end_block - 1
    *_, source = lease.entry.up_to(last_block)
    *_, target = reservation.write.entry.up_to(last_block)
    source_key = source.node.keys[last_block - source.start]
    target_key = target.node.keys[last_block - target.start]
    if source_key != target_key:
        msg = (
            f"request {reservation.request_id!r} reserved room for blocks that its lease does not "
            "hold: match and reserve the same keys"
        )
        raise LeaseError(msg)


def _locate(entry: Entry, first_block: int, end_block: int) -> Endpoint | None:
    """Return where blocks `first_block` to `end_block` of the chain to `entry` are kept."""
    runs = [run for run in entry.up_to(first_block) if run.start < end_block]
    if not runs[0].is_alive:
        return None
    runs.reverse()
    cuts = [(max(first_block - run.start, 0), end_block - run.start) for run in runs]
    if entry.tier.addressed_by == "key":
        keys: list[BlockKey] = []
        for run, (start, end) in zip(runs, cuts, strict=True):
            keys += run.node.keys[start:end]
        return StoredBlocks(entry.tier.name, keys, _key_before(runs[0], cuts[0][0]))
    slots = [
        memoryview(run.slots)[start * SLOT_BYTES : end * SLOT_BYTES]
        for run, (start, end) in zip(runs, cuts, strict=True)
    ]
    return HostSlots(b"".join(slots))


def _key_before(run: Entry, start: int) -> BlockKey | None:
    """Return the key of the block before block `start` of `run`, if there is one."""
    if start:
        return run.node.keys[start - 1]
    assert run.node.parent is not None
    before = run.node.parent.keys[-1:]
    return before[0] if before else None


def _plan(
    ticket: Ticket, source: Endpoint | None, target: Endpoint | None, num_blocks: int
) -> TransferPlan | None:
    """Return the plan `ticket`, or None if its source or target is gone."""
    if source is None or target is None:
        return None
    return TransferPlan(
        job_id=ticket.job_id,
        source=source,
        target=target,
        num_blocks=num_blocks,
        epoch=ticket.epoch,
        deadline_s=ticket.deadline_s,
    )
