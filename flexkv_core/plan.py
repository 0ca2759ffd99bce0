"""The messages between control plane and data plane: the only thing both know.

The structs are wire-stable msgspec types without tensors, so they travel in any engine's own
scheduler-to-worker metadata. Nothing here imports torch or numpy.
"""

import enum
from collections.abc import Sequence

import msgspec

from flexkv_core.block.types import BlockKey, JobId

__all__ = [
    "SLOT_BYTES",
    "Endpoint",
    "EnginePages",
    "HostSlots",
    "Status",
    "StoredBlocks",
    "StoredKey",
    "TierOrders",
    "TierReport",
    "TransferPlan",
    "TransferResult",
]


SLOT_BYTES = 8
"""Size of one slot number: slots are passed as packed native int64 and never become Python ints."""


class EnginePages(msgspec.Struct, frozen=True, tag="pages", array_like=True):
    """A run of whole pages in the engine's own KV pool.

    The run covers consecutive blocks and may begin inside its first block and end inside its last
    one: an engine's own prefix hit ends on a page, not on a block.
    """

    page_ids: Sequence[int]
    """Ids in the engine's page table, in token order. The worker reads them and keeps none."""

    first_page: int = 0
    """Pages of the first block before `page_ids[0]`; 0 <= first_page < pages per block."""


class HostSlots(msgspec.Struct, frozen=True, tag="host", array_like=True):
    """Blocks in the host tier, one slot each, in chain order."""

    slots: bytes
    """`SLOT_BYTES` per block: `numpy.frombuffer(slots, numpy.int64)`."""


class StoredBlocks(msgspec.Struct, frozen=True, tag="stored", array_like=True):
    """Blocks in a tier that finds them by key (ssd, remote)."""

    tier: str
    keys: Sequence[BlockKey]

    parent: BlockKey | None = None
    """Key of the block before `keys[0]`; None where the chain begins."""

    is_chain: bool = True
    """Whether each block is of use only behind those before it, so that a copy ends at the first
    that fails. Otherwise every block stands alone and ends with a status of its own."""


Endpoint = EnginePages | HostSlots | StoredBlocks


class TransferPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Copy `num_blocks` blocks from `source` to `target`.

    A worker never reads a block that the same plan writes, and a block being written is in no other
    plan in flight: leases and reservations ensure it.
    """

    job_id: JobId
    source: Endpoint
    target: Endpoint
    num_blocks: int
    epoch: int = 0
    """Resets of the manager before this plan; results of an older epoch are ignored."""

    deadline_s: float | None = None
    """`time.monotonic()` on the worker's machine after which the copy is not worth finishing."""


class Status(enum.IntEnum):
    """How one rank's share of a plan ended; the larger, the worse."""

    OK = 0
    BUSY = 1
    """Not begun: too much is waiting already. The same plan may succeed later."""

    MISS = 2
    CORRUPT = 3
    TIMEOUT = 4
    """Not done in time, or given up."""

    ERROR = 5
    CLOSED = 6
    """Not begun, and nothing will be any more: whoever should have done it has stopped."""

    @property
    def is_loss(self) -> bool:
        """Whether what was asked for is not to be had there, now or later."""
        return self in {Status.MISS, Status.CORRUPT, Status.ERROR}


class TransferResult(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's report on one plan."""

    job_id: JobId
    rank: int
    status: Status
    """The worst of its blocks where they stand alone."""

    num_blocks: int
    """Leading blocks of the plan that are entirely good, or all good ones where blocks stand
    alone; as many as the plan has if and only if OK."""

    epoch: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    """One sentence for people if status is ERROR."""

    statuses: Sequence[Status] = ()
    """One a block where blocks stand alone and the plan was begun; otherwise empty."""


class StoredKey(msgspec.Struct, frozen=True, array_like=True):
    """A block that one rank has found in its part of a tier."""

    key: BlockKey
    parent: BlockKey | None
    """Key of the block before it; None where the chain begins."""


class TierReport(msgspec.Struct, frozen=True, kw_only=True):
    """One owner's report on its part of a durable tier."""

    tier: str
    rank: int
    capacity_blocks: int
    """Blocks there is room for; falls when the disk has less space than configured."""

    recovered: list[StoredKey] = []
    """Blocks of earlier processes, found since the last report; parents may come after children."""

    is_recovered: bool = False
    """Nothing more will be recovered."""

    counts: dict[str, float] = {}
    """Changes of `metrics.METRICS` since the last report."""

    generation: str = ""
    """The last `TierOrders.generation` that was begun, "" for none: what was recovered before a
    reset no longer counts after it."""


class TierOrders(msgspec.Struct, frozen=True, kw_only=True):
    """Orders for the workers of one tier, in this order; all but `plans` are for owners only."""

    generation: str = ""
    """Not empty after a reset: forget every block, and begin a generation of this name, apart from
    all that was stored before."""

    gone: list[BlockKey] = []
    """Blocks that are no longer in the tier."""

    plans: list[TransferPlan] = []
    """Copies between the tier and host memory."""
