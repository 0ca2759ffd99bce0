"""What one request has to do with a tier below host memory."""

from collections.abc import Sequence

from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.hierarchy.lower_tier import LowerTier

__all__ = ["TierUse"]


class TierUse:
    """Follows a request from its arrival until its last block is saved.

    Every method takes the keys of all full blocks of the request that are known by then.

    Thread: the scheduler's.
    """

    __slots__ = (
        "_max_blocks",
        "_num_touched",
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
            max_blocks: How many of its leading blocks the tier has to do with; None for all.
        """
        self._tier = tier
        self._request_id = request_id
        self._max_blocks = max_blocks
        self.num_host_blocks = num_host_blocks
        """Leading blocks in host memory at its arrival; what is behind them came from the tier."""

        self._num_touched = 0
        self._num_wanted = 0
        self.touch(keys)
        self.offer(keys)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Let the tier decide about blocks that it has not been told of."""
        keys = self._its_own(keys)
        if len(keys) > self._num_touched:
            self._num_wanted = self._tier.demoter.admit(keys, self._num_touched, self._num_wanted)
            self._num_touched = len(keys)

    def offer(self, keys: Sequence[BlockKey]) -> None:
        """Let the tier have what it wants and host memory has by now."""
        self._tier.demoter.offer(self._request_id, self._its_own(keys), self._num_wanted)

    def waits(self, keys: Sequence[BlockKey], now_s: float, block_compute_s: float | None) -> bool:
        """Return whether more is on its way to host memory and worth waiting for."""
        own = self._its_own(keys)
        return self._tier.promoter.must_wait(self._request_id, own, now_s, block_compute_s)

    def end(self) -> None:
        """Note that the request has ended; its last blocks may still be offered."""
        self._tier.promoter.forget(self._request_id)

    def _its_own(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        return keys if self._max_blocks is None else keys[: self._max_blocks]
