"""What the machine can do at best: flat pinned copies, small copies, and registering memory."""

from collections.abc import Callable, Iterator

from benchmarks.gpu.budget import compare
from benchmarks.gpu.machine import on_device, pinned, seconds
from benchmarks.rows import Row, spread
from flexkv_core.tiers.host import HostPool
from flexkv_core.tiers.pinning import PinnedPool, find_cuda_runtime

COPY_BYTES = 256 << 20


class FlatCopies:
    """One large copy in each direction, each on a stream of its own."""

    def __init__(self, num_bytes: int) -> None:
        import torch  # noqa: PLC0415 not there everywhere

        self.num_bytes = num_bytes
        self._device = on_device(num_bytes), on_device(num_bytes)
        self._host = pinned(num_bytes), pinned(num_bytes)
        self._streams = torch.cuda.Stream(), torch.cuda.Stream()
        self._on = torch.cuda.stream

    def out(self) -> None:
        """Queue device to host."""
        with self._on(self._streams[0]):
            self._host[0].copy_(self._device[0], non_blocking=True)

    def into(self) -> None:
        """Queue host to device."""
        with self._on(self._streams[1]):
            self._device[1].copy_(self._host[1], non_blocking=True)

    def both(self) -> None:
        """Queue one of each."""
        self.out()
        self.into()


def flat(rounds: int, sizes: tuple[int, ...] = (1 << 20, 16 << 20, COPY_BYTES)) -> Iterator[Row]:
    """Measure flat copies of several sizes."""
    for size in sizes:
        copies = FlatCopies(size)
        runs: dict[str, Callable[[], float]] = {
            "out": lambda copies=copies: seconds(copies.out),
            "in": lambda copies=copies: seconds(copies.into),
            "both": lambda copies=copies: seconds(copies.both),
        }
        moved = {"out": size, "in": size, "both": 2 * size}
        for row in compare(runs, moved, rounds):
            yield {"benchmark": "gpu_flat", "mib": size / 2**20, **row}


def small_copies(rounds: int, total: int = 64 << 20) -> Iterator[Row]:
    """Measure the same bytes in pieces: from which size on is one call a piece good enough?"""
    device, host = on_device(total), pinned(total)

    def copy(piece: int) -> None:
        for begin in range(0, total, piece):
            span = slice(begin, begin + piece)
            host[span].copy_(device[span], non_blocking=True)

    pieces = [total] + [kib << 10 for kib in (16, 64, 256, 1024, 4096) if kib << 10 < total]
    runs = {
        f"pieces of {piece >> 10} KiB": lambda piece=piece: seconds(lambda: copy(piece))
        for piece in pieces
    }
    for row in compare(runs, dict.fromkeys(runs, total), rounds):
        yield {"benchmark": "gpu_small_copies", **row}


def registering(rounds: int, num_bytes: int = 2 << 30) -> Iterator[Row]:
    """Measure how long pinning takes, fresh memory included."""
    cuda = find_cuda_runtime()
    if cuda is None:
        return
    taken = []
    for _ in range(rounds):
        pool = HostPool.create(num_bytes >> 20, 1 << 20)
        pins: list[PinnedPool] = []
        taken.append(seconds(lambda pins=pins, pool=pool: pins.append(PinnedPool(pool, cuda))))
        pins.pop().close()
        pool.close()
    figures = spread("seconds_per_gib", (s / (num_bytes / 2**30) for s in taken))
    yield {"benchmark": "gpu_pinning", "gib": num_bytes / 2**30, **figures, "rounds": rounds}
