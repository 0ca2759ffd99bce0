"""One request's dealings with a tier below host memory."""

from collections.abc import Sequence

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.hierarchy.lower_tier import LowerTier

__all__ = ["LowerTierRequest"]


class LowerTierRequest:
    """Follows a request from its arrival until its last block is saved.

    Every method takes the keys of all full blocks of the request that are known by then.

    Thread: the scheduler's.
    """

    __slots__ = (
        "_max_blocks",
        "_num_seen",
        "_num_wanted",
        "_request_id",
        "_tier",
        "num_host_blocks",
    )

    def __init__(
        self,
        tier: LowerTier,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        num_host_blocks: int,
        max_blocks: int | None = None,
    ) -> None:
        """Note the arrival of a request.

        Args:
            tier: Where its blocks may be, and go.
            request_id: Its name.
            keys: As everywhere.
            num_host_blocks: How many of its leading blocks host memory has.
            max_blocks: How many of its leading blocks may be in the tier; None for all.
        """
        self._tier = tier
        self._request_id = request_id
        self._max_blocks = max_blocks
        self.num_host_blocks = num_host_blocks
        """Leading blocks in host memory at its arrival; those after them came from the tier."""

        self._num_seen = 0
        """Leading blocks whose admission was decided."""

        self._num_wanted = 0
        self.admit(keys)
        self.demote(keys)

    def admit(self, keys: Sequence[BlockKey]) -> None:
        """Let the tier decide which of the blocks that are new to it it wants."""
        keys = self._eligible(keys)
        if len(keys) > self._num_seen:
            self._num_wanted = self._tier.demoter.admit(keys, self._num_seen, self._num_wanted)
            self._num_seen = len(keys)

    def demote(self, keys: Sequence[BlockKey]) -> None:
        """Have copied to the tier what it wants and host memory has by now."""
        self._tier.demoter.offer(self._request_id, self._eligible(keys), self._num_wanted)

    def fetch(self, keys: Sequence[BlockKey], now_s: float, block_compute_s: float | None) -> bool:
        """Have copied to host memory what the tier has; return whether it is worth waiting for.

        Only the first call starts copies; the later ones ask about them.
        """
        eligible = self._eligible(keys)
        return self._tier.promoter.must_wait(self._request_id, eligible, now_s, block_compute_s)

    def end(self) -> None:
        """Note that the request has ended; its last blocks may still be demoted."""
        self._tier.promoter.forget(self._request_id)

    def _eligible(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        return keys if self._max_blocks is None else keys[: self._max_blocks]
