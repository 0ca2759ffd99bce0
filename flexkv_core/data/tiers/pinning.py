"""Pins a host pool, so that a GPU copies from and to it asynchronously and at full speed.

Tested with a stand-in for the CUDA runtime only: it has not run on a GPU yet.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flexkv_core.data.tiers.host import HostPool
from flexkv_core.errors import TierError

__all__ = ["CudaError", "CudaRuntime", "PinnedPool", "find_cuda_runtime"]

_CHUNK_BYTES = 1 << 30
_PORTABLE_AND_MAPPED = 1 | 2  # cudaHostRegisterPortable | cudaHostRegisterMapped


class CudaError(Protocol):
    """A status code of the CUDA runtime."""

    @property
    def value(self) -> int:
        """0 for success."""


@dataclass(frozen=True, slots=True)
class CudaRuntime:
    """The two calls of the CUDA runtime that pinning needs."""

    register: Callable[[int, int, int], CudaError]
    """cudaHostRegister(address, size in bytes, flags)."""

    unregister: Callable[[int], CudaError]
    """cudaHostUnregister(address)."""


def find_cuda_runtime() -> CudaRuntime | None:
    """Return the runtime of the torch that this process uses, or None if there is no GPU.

    torch is not imported: a process that owns GPU memory has done so long before.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    cudart = torch.cuda.cudart()
    return CudaRuntime(cudart.cudaHostRegister, cudart.cudaHostUnregister)


class PinnedPool:
    """The registration of a pool with CUDA, valid until `close`.

    The pool is registered in pieces of about 1 GiB, so that the driver's lock is free in between,
    and of whole slots, because one copy must not cross from one registration into another.

    Thread: the owner of the pool. Close it before the pool, when no copy is in flight.
    """

    def __init__(self, pool: HostPool, cuda: CudaRuntime) -> None:
        """Pin all slots.

        Raises:
            TierError: CUDA refuses; nothing stays pinned.

        Cost: touches every page of the pool, so prefaulting it as well would be wasted.
        """
        self._cuda = cuda
        self._addresses: list[int] = []
        base = ctypes.addressof(ctypes.c_char.from_buffer(pool.buffer))
        size = pool.num_slots * pool.slot_stride
        step = max(1, _CHUNK_BYTES // pool.slot_stride) * pool.slot_stride
        for start in range(0, size, step):
            self._pin(base + start, min(step, size - start))

    def close(self) -> None:
        """Unregister every piece. A second call does nothing."""
        while self._addresses:
            self._cuda.unregister(self._addresses.pop())

    def _pin(self, address: int, size: int) -> None:
        code = self._cuda.register(address, size, _PORTABLE_AND_MAPPED).value
        if code:
            self.close()
            msg = (
                f"cudaHostRegister refused {size} bytes with error {code}: allow the process to "
                "lock memory (ulimit -l unlimited) or lower cpu_cache_gb"
            )
            raise TierError("host", msg)
        self._addresses.append(address)
