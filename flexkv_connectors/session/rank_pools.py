"""Which ranks own host pools, and which ranks read another rank's.

Where ranks hold identical KV (MLA latents, fewer KV heads than ranks), one of them owns the host
copy and the others map it, so that the bytes exist once per node.
"""

from collections.abc import Collection, Mapping

from flexkv_connectors.session.orders import RankReport
from flexkv_core.data.tiers.host import PoolAddress

__all__ = ["RankPools"]


class RankPools:
    """Follows the host pools of one engine from their opening until every rank can read one.

    Thread: the scheduler's.
    """

    def __init__(self, owners: Collection[int], borrowers: Collection[int]) -> None:
        self._missing_owners = set(owners)
        self._missing_borrowers = set(borrowers)
        self._pools: dict[int, PoolAddress] = {}

    def note(self, report: RankReport) -> None:
        """Note whether a rank has opened its pool, or mapped that of its owner."""
        if report.pool is not None:
            self._pools[report.rank] = report.pool
            self._missing_owners.discard(report.rank)
        if report.attached:
            self._missing_borrowers.discard(report.rank)

    @property
    def num_slots(self) -> int | None:
        """Slots that every owner has, or None until all of them have opened their pool."""
        if self._missing_owners:
            return None
        return min(pool.num_slots for pool in self._pools.values())

    @property
    def to_attach(self) -> Mapping[int, PoolAddress]:
        """Pools that borrowers still have to map, by owner; empty when `are_ready`."""
        return self._pools if self._missing_borrowers else {}

    @property
    def are_ready(self) -> bool:
        """Whether every rank can read the blocks that its owner has written."""
        return not (self._missing_owners or self._missing_borrowers)
