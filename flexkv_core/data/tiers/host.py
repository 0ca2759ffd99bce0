"""The host tier: one region of equal slots, backed by an anonymous file (memfd).

A memfd has no name, so nothing is left behind when a process is killed, and other ranks of the
node can map the same memory through `/proc/<pid>/fd/<fd>`. Its size is sealed: nobody can shrink
it under a mapping, which would turn a copy into SIGBUS.
"""

import ctypes
import fcntl
import logging
import mmap
import os
import threading

import msgspec

from flexkv_core.data.tiers.memory import MEMORY_ALIGNMENT, SlotMemory
from flexkv_core.errors import TierError
from flexkv_core.shared_files import close_file

__all__ = ["HostPool", "PoolAddress", "num_slots_in", "slot_stride"]

logger = logging.getLogger(__name__)

_HUGE_PAGE_BYTES = 2 << 20
_PREFAULT_BYTES = 8 << 20  # `close` is noticed within 5 ms at the 1.6 GB/s of `prefault`
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_IDLE_NICE = 19


def slot_stride(slot_bytes: int) -> int:
    """Return the bytes from one slot to the next: `slot_bytes` rounded up to whole pages."""
    return -(-slot_bytes // MEMORY_ALIGNMENT) * MEMORY_ALIGNMENT


def num_slots_in(capacity_bytes: int, slot_bytes: int) -> int:
    """Return how many slots fit: with padding they never take more than `capacity_bytes`."""
    return capacity_bytes // slot_stride(slot_bytes)


class PoolAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where another process of the same node finds a pool.

    The kernel reuses process ids and file descriptors, but not the inode of the region, so another
    file is never mistaken for a pool that is gone.
    """

    pid: int
    fd: int
    device: int
    inode: int
    num_slots: int
    slot_bytes: int


class HostPool:
    """`num_slots` slots of `slot_bytes`, `slot_stride` apart, in one shared mapping.

    Thread: any may use `buffer`; `prefault` and `close` belong to the owner of the pool.
    """

    def __init__(self, fd: int, num_slots: int, slot_bytes: int) -> None:
        """Map `fd` and own it from here on. Use `create` or `attach`."""
        self.num_slots = num_slots
        self.slot_bytes = slot_bytes
        self.slot_stride = slot_stride(slot_bytes)
        self._fd = fd
        self._stop = threading.Event()
        self._prefaulter: threading.Thread | None = None
        self.buffer = _map(fd)

    @classmethod
    def create(cls, num_slots: int, slot_bytes: int, *, huge_pages: bool = False) -> "HostPool":
        """Make a new, empty region.

        Args:
            num_slots: At least 1.
            slot_bytes: Bytes used of each slot, at least 1.
            huge_pages: Use 2 MiB pages that the administrator has reserved (`vm.nr_hugepages`).

        Raises:
            TierError: The kernel refuses the memory.

        Cost: no memory is taken before it is touched (see `prefault`), except with huge pages.
        """
        size = num_slots * slot_stride(slot_bytes)
        try:
            fd = _new_huge_file(size) if huge_pages else _new_file(size, flags=0)
            return cls(fd, num_slots, slot_bytes)
        except OSError as error:
            msg = f"cannot get {size} bytes of host memory: {error.strerror}; lower cpu_cache_gb"
            if huge_pages:
                msg += f", or reserve {-(-size // _HUGE_PAGE_BYTES)} huge pages (vm.nr_hugepages)"
            raise TierError("host", msg) from error

    @classmethod
    def attach(cls, address: PoolAddress) -> "HostPool":
        """Map the region of another process of this node; it lives until both have closed it.

        Raises:
            TierError: The process has ended, has closed its pool, or may not be inspected.
        """
        path = f"/proc/{address.pid}/fd/{address.fd}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == (address.device, address.inode):
                return cls(fd, address.num_slots, address.slot_bytes)
            close_file(fd)
        except OSError as error:
            msg = (
                f"cannot map the pool of process {address.pid} at {path}: {error.strerror}; ranks "
                "that share a pool must run on one node, as one user, in one PID namespace"
            )
            raise TierError("host", msg) from error
        msg = f"{path} is not the pool that was announced: its owner has closed it or has ended"
        raise TierError("host", msg)

    @property
    def address(self) -> PoolAddress:
        """What `attach` needs; valid until `close`."""
        found = os.fstat(self._fd)
        return PoolAddress(
            os.getpid(), self._fd, found.st_dev, found.st_ino, self.num_slots, self.slot_bytes
        )

    @property
    def memory(self) -> SlotMemory:
        """The slots as a tier sees them; keeps the region mapped even after `close`."""
        return SlotMemory(self.buffer, self.num_slots, self.slot_bytes, self.slot_stride)

    def prefault(self) -> None:
        """Begin to fault the memory in, on a thread of lowest priority, without changing a byte.

        The first copy into fresh memory runs at 0.4-1.6 GB/s instead of 20, because the kernel
        zeroes and maps every page on the way; this thread does it at 1.6 GB/s ahead of the saves
        (2 cores of an AMD EPYC virtual machine, Linux 6.18, November 2026). With `fallocate`
        instead, the first copy still has to do the zeroing: 3 GB/s. Pinned memory needs neither.
        """
        if self._prefaulter is None:
            self._prefaulter = threading.Thread(
                target=self._populate, name="flexkv-prefault", daemon=True
            )
            self._prefaulter.start()

    def close(self) -> None:
        """Close the pool. A second call does nothing.

        The memory itself is freed with the last view of `buffer` and the last process that maps
        it, so a copy that is still running never loses its memory.
        """
        if self._fd < 0:
            return
        self._stop.set()
        if self._prefaulter is not None:
            self._prefaulter.join()
        close_file(self._fd)
        self._fd = -1
        self.buffer = memoryview(b"")

    def _populate(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _IDLE_NICE)
        # mmap.madvise would hold the GIL for the whole call; ctypes releases it.
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        size = len(self.buffer)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        for start in range(0, size, _PREFAULT_BYTES):
            if self._stop.is_set():
                return
            step = min(_PREFAULT_BYTES, size - start)
            if madvise(base + start, step, _MADV_POPULATE_WRITE):
                reason = os.strerror(ctypes.get_errno())
                logger.warning("host.prefault_stopped at=%d of=%d: %s", start, size, reason)
                return


def _new_file(size: int, flags: int) -> int:
    """Return an anonymous file of `size` bytes, sealed against any other size."""
    fd = os.memfd_create("flexkv-host", flags | os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
    except OSError:
        close_file(fd)
        raise
    return fd


def _new_huge_file(size: int) -> int:
    """Return a file of whole 2 MiB pages; mapping it fails unless enough of them are reserved."""
    whole = -(-size // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    return _new_file(whole, os.MFD_HUGETLB | os.MFD_HUGE_2MB)


def _map(fd: int) -> memoryview:
    """Map all of `fd`, or close it."""
    try:
        return memoryview(mmap.mmap(fd, os.fstat(fd).st_size))
    except OSError:
        close_file(fd)
        raise
