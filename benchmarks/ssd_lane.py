"""The SSD tier behind its lane against fio: the same file system, block size, depth and bytes.

Reads are of random blocks, so that none lies behind the one before; writes replace what was there.
fio reads and writes a file of its own with O_DIRECT, with its io_uring engine or, where that is
missing, libaio. Rounds alternate; ratios are taken within a round. `busy` has a thread of pure
Python beside the lane, as an engine's scheduler is: every operation must win back the GIL.

Run from the root of the checkout: `python -m benchmarks.ssd_lane [--json FILE] [--rounds N]
[--work FOLDER]`. Needs the program fio.
"""

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.block.layout import Column
from flexkv_core.block.types import BlockKey, JobId
from flexkv_core.data.tiers.base import TierBlock
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.tier_lane import TierLane
from flexkv_core.plan import HostSlots, Status, StoredBlocks, TransferPlan
from flexkv_core.testing.namespaces import make_namespace

PAYLOAD_BYTES = 512 << 20
FIO_SECONDS = 0.7
CELL_KIB = (256, 1024, 2048, 4096)
DEPTHS = (1, 8, 16)


class Case(NamedTuple):
    """One line of the table."""

    operation: str
    cell_kib: int
    depth: int
    is_busy: bool


class Drive:
    """A tier on a folder, with room for `PAYLOAD_BYTES` in cells of one size, all written."""

    def __init__(self, folder: Path, cell_bytes: int) -> None:
        self._num_blocks = PAYLOAD_BYTES // cell_bytes
        self._pool = HostPool.create(self._num_blocks, cell_bytes)
        noise = np.random.default_rng(1).integers(0, 256, PAYLOAD_BYTES, np.uint8)
        np.frombuffer(self._pool.buffer, np.uint8)[:PAYLOAD_BYTES] = noise
        self._folder, self._cell_bytes = folder, cell_bytes
        self._tier = self._open()
        self._numbers = itertools.count()
        self._keys: list[BlockKey] = []
        self.write(depth=8)

    def write(self, depth: int) -> float:
        """Replace every block; return the seconds it took."""
        self._tier.delete(self._keys)
        self._keys = [
            BlockKey(next(self._numbers).to_bytes(32, "big")) for _ in range(self._num_blocks)
        ]
        return self._run(depth, self._keys, is_read=False)

    def read(self, depth: int) -> float:
        """Read every block in random order; return the seconds it took."""
        keys = random.sample(self._keys, len(self._keys))
        return self._run(depth, keys, is_read=True)

    def reopen(self) -> int:
        """Close the tier and open another one on its files; return how many blocks it finds."""
        self._tier.close()
        self._tier = self._open()
        self._tier.wait_recovered()
        return len(self._tier.take_recovered(self._num_blocks))

    def count_readable(self) -> int:
        """Return how many blocks a read of each by itself gives out."""
        blocks = [TierBlock(key, None, 0) for key in self._keys]
        statuses = [self._tier.read([block], None)[0] for block in blocks]
        return statuses.count(Status.OK)

    def close(self) -> None:
        """Give everything back."""
        self._tier.close()
        self._pool.close()

    def _open(self) -> SsdTier:
        column = Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)
        options = SsdOptions(
            directories=(self._folder,), quota_bytes=2 * PAYLOAD_BYTES + (64 << 20)
        )
        share = BlockShare(make_namespace(), [column], self._cell_bytes, "benchmark")
        return SsdTier(self._pool.memory, share, options)

    def _run(self, depth: int, keys: Sequence[BlockKey], *, is_read: bool) -> float:
        lane = TierLane(0, self._tier, self._pool.memory, num_threads=depth)
        slots = HostSlots(np.arange(len(keys), dtype=np.int64).tobytes())
        stored = StoredBlocks("ssd", keys)
        plan = TransferPlan(
            job_id=JobId(1),
            source=stored if is_read else slots,
            target=slots if is_read else stored,
            num_blocks=len(keys),
        )
        start = time.perf_counter()
        lane.submit(plan)
        assert lane.drain(timeout_s=120)
        taken_s = time.perf_counter() - start
        (result,) = lane.poll()
        assert result.status is Status.OK, result
        lane.close()
        return taken_s


@contextmanager
def busy_thread(*, wanted: bool) -> Iterator[None]:
    """Let a thread compute in Python meanwhile, if `wanted`."""
    stop = threading.Event()

    def spin() -> None:
        number = 0
        while not stop.is_set():
            number += 1

    thread = threading.Thread(target=spin)
    if wanted:
        thread.start()
    yield
    stop.set()
    if wanted:
        thread.join()


def flip_bytes(path: Path, offsets: Iterable[int]) -> None:
    """Change the bytes of a file that lie at `offsets`."""
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))


def fio_bytes_per_s(path: Path, num_bytes: int, operation: str, cell_kib: int, depth: int) -> float:
    """Return what fio reaches on the first bytes of a file that is there from the first call on."""
    command = [
        "fio",
        "--name=baseline",
        f"--filename={path}",
        f"--rw=rand{operation}",
        f"--bs={cell_kib}k",
        f"--iodepth={depth}",
        f"--size={num_bytes}",
        f"--runtime={FIO_SECONDS}",
        f"--ioengine={_fio_engine()}",
        "--time_based",
        "--direct=1",
        "--invalidate=0",
        "--output-format=json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (job,) = json.loads(done.stdout)["jobs"]
    return float(job[operation]["bw_bytes"])


def _fio_engine() -> str:
    listed = subprocess.run(["fio", "--enghelp"], check=True, capture_output=True, text=True)
    return "io_uring" if "io_uring" in listed.stdout.split() else "libaio"


def measure(work: Path, rounds: int) -> Iterator[Row]:
    """Yield the rows of all cell sizes, one size after the other."""
    for cell_kib in CELL_KIB:
        with tempfile.TemporaryDirectory(prefix="ssd-", dir=work) as name:
            folder = Path(name)
            drive = Drive(folder / "tier", cell_kib << 10)
            yield from _measure_size(drive, folder, cell_kib, rounds)
            drive.close()


def _measure_size(drive: Drive, folder: Path, cell_kib: int, rounds: int) -> Iterator[Row]:
    cases = [
        Case(operation, cell_kib, depth, is_busy)
        for operation in ("read", "write")
        for depth in DEPTHS
        for is_busy in (False, True)
        if depth == max(DEPTHS[:-1]) or not is_busy
    ]
    samples: dict[Case, list[tuple[float, float]]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        print(f"{cell_kib} KiB, round {number} of {rounds}", file=sys.stderr, flush=True)
        for case in cases:
            fio = fio_bytes_per_s(
                folder / "fio.bin", PAYLOAD_BYTES, case.operation, cell_kib, case.depth
            )
            with busy_thread(wanted=case.is_busy):
                taken_s = (drive.read if case.operation == "read" else drive.write)(case.depth)
            samples[case].append((PAYLOAD_BYTES / taken_s, fio))
    for case, pairs in samples.items():
        yield _row(case, pairs[1:])


def _row(case: Case, pairs: Sequence[tuple[float, float]]) -> Row:
    return {
        "benchmark": "ssd_lane",
        "operation": case.operation,
        "cell_kib": case.cell_kib,
        "depth": case.depth,
        "beside": "busy Python thread" if case.is_busy else "",
        **rows.spread("mb_s", (lane / 1e6 for lane, _ in pairs)),
        **rows.spread("fio_mb_s", (fio / 1e6 for _, fio in pairs)),
        **rows.spread("ratio", (lane / fio for lane, fio in pairs)),
        "rounds": len(pairs),
    }


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    if shutil.which("fio") is None:
        sys.exit("ssd_lane: the program fio is missing; nothing was measured")
    arguments.work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances()
    measured = [row | around for row in measure(arguments.work, arguments.rounds)]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
