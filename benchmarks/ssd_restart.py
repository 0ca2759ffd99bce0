"""How long a restart takes: header scan, and until the last block is findable again.

Slabs are made with headers alone (the scan reads nothing else) and dropped from the page cache.
`scan` is the tier's own thread; `findable` adds what the scheduler side does: a report of 2048
keys every 5 ms, chains put together, the index. Prompts of 64 blocks share their first half with
others.

Run from the root of the checkout: `python -m benchmarks.ssd_restart [--json FILE] [--rounds N]
[--blocks N] [--work FOLDER]`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.block.layout import Column
from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.format import (
    PAGE_BYTES,
    CellHeader,
    Superblock,
    column_identity,
    slot_bytes,
)
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.metrics import Counters
from flexkv_core.plan import TierReport
from flexkv_core.testing.namespaces import make_namespace

CELL_KIB = (64, 1024)
COLUMN = Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)
REPORT_KEYS = 2048
STEP_S = 0.005
"""Between two reports, as between two steps of an engine. Reports without a pause would be a thread
of pure Python that takes the interpreter from the one that reads headers."""


def make_slab(folder: Path, num_blocks: int, cell_bytes: int) -> None:
    """Write a slab of `num_blocks` cells without their payloads, and forget it."""
    superblock = Superblock(
        namespace=make_namespace(),
        column=COLUMN.name,
        identity=column_identity(make_namespace(), COLUMN).hex(),
        cell_bytes=cell_bytes,
    )
    path = folder / make_namespace().short / COLUMN.name / "old.slab"
    path.parent.mkdir(parents=True)
    identity = bytes.fromhex(superblock.identity)
    with path.open("wb") as file:
        file.write(superblock.pack())
        for slot, (key, parent) in enumerate(chains(num_blocks)):
            file.seek(PAGE_BYTES + slot * slot_bytes(cell_bytes))
            file.write(CellHeader(identity, key, parent, cell_bytes, 0).pack())
        file.truncate(PAGE_BYTES + num_blocks * slot_bytes(cell_bytes))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def chains(num_blocks: int) -> Iterator[tuple[BlockKey, BlockKey | None]]:
    """Yield keys and parents of prompts: 32 blocks that 16 prompts share, and 32 of its own."""
    made = 0
    for head in range(num_blocks):
        trunk: BlockKey | None = None
        for depth in range(32):
            trunk, parent = _key(head, depth), trunk
            yield trunk, parent
        for prompt in range(16):
            key = trunk
            for depth in range(32):
                key, parent = _key(head, prompt, depth), key
                yield key, parent
        made += 32 + 16 * 32
        if made > num_blocks - 32 - 16 * 32:
            break
    for rest in range(num_blocks - made):
        yield _key(rest), None


def _key(*numbers: int) -> BlockKey:
    return BlockKey(sha256(repr(numbers).encode()).digest())


def scan_s(folder: Path, num_blocks: int, cell_bytes: int) -> float:
    """Return the seconds until the tier alone has found everything."""
    pool = HostPool.create(1, cell_bytes)
    start = time.perf_counter()
    tier = _open(folder, num_blocks, cell_bytes, pool)
    tier.wait_recovered()
    taken_s = time.perf_counter() - start
    tier.close()
    return taken_s


def findable_s(folder: Path, num_blocks: int, cell_bytes: int) -> float:
    """Return the seconds until the last block can be matched."""
    pool = HostPool.create(1, cell_bytes)
    counters = Counters()
    start = time.perf_counter()
    tier = _open(folder, num_blocks, cell_bytes, pool)
    tiers = [TierSpec("host", 64), TierSpec("ssd", num_blocks, addressed_by="key")]
    manager = CacheManager(tiers, recorder=counters)
    lower = LowerTier(
        manager, "ssd", owners=(0,), block_bytes=cell_bytes, timeout_s=1, recorder=counters
    )
    while lower.has_work:
        recovered = tier.take_recovered(REPORT_KEYS)
        report = TierReport(
            tier="ssd",
            rank=0,
            capacity_blocks=num_blocks,
            recovered=recovered,
            is_recovered=tier.is_recovered,
        )
        lower.handle_report(report)
        lower.take_orders(time.monotonic())
        time.sleep(STEP_S)
    taken_s = time.perf_counter() - start
    assert manager.num_used_blocks("ssd") == num_blocks, manager.num_used_blocks("ssd")
    tier.close()
    return taken_s


def _open(folder: Path, num_blocks: int, cell_bytes: int, pool: HostPool) -> SsdTier:
    quota_bytes = PAGE_BYTES + num_blocks * slot_bytes(cell_bytes)
    options = SsdOptions(directories=(folder,), quota_bytes=quota_bytes)
    return SsdTier(
        pool.memory, BlockShare(make_namespace(), [COLUMN], cell_bytes, "benchmark"), options
    )


def measure(work: Path, num_blocks: int, rounds: int) -> Iterator[Row]:
    """Yield a row for each size of cell; every round has a new slab that no cache knows."""
    for cell_kib in CELL_KIB:
        scans, restarts = [], []
        for number in range(rounds):
            print(f"{cell_kib} KiB, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for samples, run in ((scans, scan_s), (restarts, findable_s)):
                with tempfile.TemporaryDirectory(prefix="ssd-", dir=work) as folder:
                    make_slab(Path(folder), num_blocks, cell_kib << 10)
                    samples.append(run(Path(folder), num_blocks, cell_kib << 10))
        yield {
            "benchmark": "ssd_restart",
            "blocks": num_blocks,
            "cell_kib": cell_kib,
            **rows.spread("scan_s", scans),
            **rows.spread("headers_per_s", (num_blocks / taken_s for taken_s in scans)),
            **rows.spread("findable_s", restarts),
            "rounds": rounds,
        }


def main() -> None:
    """Measure, print the table, and write the rows where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--work", type=Path, default=rows.ROOT / ".work", help="on the drive")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    around = rows.circumstances()
    measured = [row | around for row in measure(arguments.work, arguments.blocks, arguments.rounds)]
    print(rows.render(measured))
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
