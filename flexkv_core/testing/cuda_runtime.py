"""The CUDA runtime's pinning, without a GPU."""

from typing import NamedTuple

from flexkv_core.data.tiers.pinning import CudaRuntime

__all__ = ["FakeCuda"]


class _Code(NamedTuple):
    value: int


class FakeCuda:
    """Remembers what is registered."""

    def __init__(self, refuses: int = -1) -> None:
        """Refuse a registration while there are `refuses` others."""
        self.pinned: dict[int, int] = {}
        """Sizes in bytes by address."""

        self.flags = 0
        """Of the last registration."""

        self._refuses = refuses
        self.runtime = CudaRuntime(self._register, self._unregister)

    def _register(self, address: int, size: int, flags: int) -> _Code:
        if len(self.pinned) == self._refuses:
            return _Code(2)
        self.pinned[address] = size
        self.flags = flags
        return _Code(0)

    def _unregister(self, address: int) -> _Code:
        del self.pinned[address]
        return _Code(0)
