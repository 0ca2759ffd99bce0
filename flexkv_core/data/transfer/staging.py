"""Which places of a staging area are free."""

from collections import deque

import numpy as np

from flexkv_core.data.transfer.device import Ids

__all__ = ["StagingRing"]


class StagingRing:
    """Places that are taken in turn: the one free for longest comes first."""

    def __init__(self, num_places: int) -> None:
        """Begin with all places free."""
        self._free = deque(range(num_places))

    def take(self, num_places: int) -> Ids | None:
        """Return that many places, or None if there are not enough; then nothing was taken."""
        if num_places > len(self._free):
            return None
        return np.array([self._free.popleft() for _ in range(num_places)], np.int64)

    def give_back(self, places: Ids) -> None:
        """Give back what `take` returned, once nothing reads or writes it."""
        self._free.extend(places.tolist())
