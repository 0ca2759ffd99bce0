"""What the machine can do at best: flat pinned copies, many rows, and registering memory."""

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gpu.budget import compare
from benchmarks.gpu.machine import on_device, pinned, seconds
from benchmarks.rows import Row, spread
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.pinning import CudaRuntime, PinnedPool, find_cuda_runtime
from flexkv_core.errors import TierError

if TYPE_CHECKING:
    import torch

ROW_BYTES = tuple(kib << 10 for kib in (4, 16, 28, 64, 256, 1024, 2048))
ROW_COUNTS = (16, 256, 4096, 32768)


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


def flat(rounds: int, payload: int) -> Iterator[Row]:
    """Measure flat copies, from a small part of `payload` to several of it."""
    for size in (payload // 256, payload // 16, payload, 4 * payload):
        copies = FlatCopies(size)
        runs: dict[str, Callable[[], float]] = {
            "out": lambda copies=copies: seconds(copies.out),
            "in": lambda copies=copies: seconds(copies.into),
            "both": lambda copies=copies: seconds(copies.both),
        }
        moved = {"out": size, "in": size, "both": 2 * size}
        for row in compare(runs, moved, rounds):
            yield {"benchmark": "gpu_flat", "mib": size / 2**20, **row}


def row_copies(rounds: int, most: int) -> Iterator[Row]:
    """Measure rows of many sizes and numbers: from where on does one call for all of them pay?"""
    memory = on_device(most), pinned(most)
    for row_bytes, num_rows in itertools.product(ROW_BYTES, ROW_COUNTS):
        if row_bytes * num_rows <= most:
            device, host = (m[: row_bytes * num_rows].view(num_rows, row_bytes) for m in memory)
            case = {"benchmark": "gpu_rows", "row_kib": row_bytes / 1024, "rows": num_rows}
            for kind, sides in {"out": (host, device), "in": (device, host)}.items():
                for row in compare_row_copies(*sides, rounds):
                    yield {**case, "kind": kind, **row}


def compare_row_copies(target: "torch.Tensor", source: "torch.Tensor", rounds: int) -> list[Row]:
    """Compare one copy of everything with copies of shuffled rows."""
    import torch  # noqa: PLC0415 not there everywhere

    from flexkv_core.data.transfer.row_copies import copy_one_by_one, find_row_copy  # noqa: PLC0415

    stream = torch.cuda.Stream()
    ids = np.random.default_rng(0).permutation(len(source)), np.arange(len(source))
    copies = {"one by one": copy_one_by_one, "one call": find_row_copy()}
    if copies["one call"] is copy_one_by_one:
        del copies["one call"]
    runs = {"flat": lambda: seconds(lambda: target.copy_(source, non_blocking=True))}
    for name, copy in copies.items():
        runs[name] = lambda copy=copy: seconds(lambda: copy(target, ids[0], source, ids[1], stream))
    return compare(runs, dict.fromkeys(runs, source.numel()), rounds)


def registering(rounds: int, num_bytes: int) -> Iterator[Row]:
    """Measure how long pinning takes, fresh memory included, where there are such pages."""
    cuda = find_cuda_runtime()
    for huge_pages in (False, True):
        try:
            taken = [pinning_seconds(cuda, num_bytes, huge_pages=huge_pages) for _ in range(rounds)]
        except TierError as error:
            print(f"left out: {error}", flush=True)
            continue
        figures = spread("seconds_per_gib", (s / (num_bytes / 2**30) for s in taken))
        case = {"gib": num_bytes / 2**30, "huge_pages": huge_pages}
        yield {"benchmark": "gpu_pinning", **case, **figures, "rounds": rounds}


def pinning_seconds(cuda: CudaRuntime | None, num_bytes: int, *, huge_pages: bool) -> float:
    """Return how long it takes to pin a new pool."""
    if cuda is None:
        raise TierError("host", "no CUDA runtime")
    pool = HostPool.create(num_bytes >> 20, 1 << 20, huge_pages=huge_pages)
    pins: list[PinnedPool] = []
    taken_s = seconds(lambda: pins.append(PinnedPool(pool, cuda)))
    pins.pop().close()
    pool.close()
    return taken_s
