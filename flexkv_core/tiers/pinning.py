"""Pin a host pool, so that a GPU can copy from and to it at full speed and asynchronously.

Tested with a stand-in for the CUDA runtime only: it has not run on a GPU yet.
"""

import ctypes
import sys
from typing import Protocol, SupportsInt

from flexkv_core.errors import TierError
from flexkv_core.tiers.host import HostPool

__all__ = ["Cudart", "PinnedPool", "find_cudart"]

_CHUNK_BYTES = 1 << 30
"""One registration of a whole pool holds the driver's lock, and up the engine, for minutes."""

_PORTABLE_AND_MAPPED = 1 | 2  # cudaHostRegisterPortable | cudaHostRegisterMapped


class Cudart(Protocol):
    """The two calls needed; both return a cudaError, 0 for success."""

    def cudaHostRegister(self, ptr: int, size: int, flags: int, /) -> SupportsInt:  # noqa: N802
        """Pin `size` bytes from `ptr`."""

    def cudaHostUnregister(self, ptr: int, /) -> SupportsInt:  # noqa: N802
        """Undo the registration that began at `ptr`."""
