"""What it costs to tell routers of blocks: memory for each that is in a tier, time for each change.

Run from the root of the checkout: `python -m benchmarks.announcer [--json FILE] [--blocks N]`.

Blocks hold 64 tokens, in pages of 64 or 16; every tenth begins a chain. They are stored in host
memory, then copied to SSD, then removed from both, 1000 a step. A round is one step.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_connectors.announcer import Announcer, BlockPages, PageKind, pack_tokens
from flexkv_core.block.types import BlockKey
from flexkv_core.events import BlocksRemoved, BlocksStored

BLOCK_TOKENS = 64
STEP_BLOCKS = 1000
CHAIN_BLOCKS = 10
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def pages_of(block: int, per_block: int) -> BlockPages:
    """Return what is told of a block; its tokens are its own."""
    first = (1 << 40) + block * per_block
    return BlockPages(
        names=tuple(range(first + 1, first + per_block + 1)),
        parent=first if block % CHAIN_BLOCKS else None,
        packed_tokens=pack_tokens(range(block, block + BLOCK_TOKENS)),
        kind=PageKind(BLOCK_TOKENS // per_block),
    )


class Rig:
    """An announcer, and the blocks that it is told of."""

    def __init__(self, num_blocks: int, per_block: int) -> None:
        self.announcer = Announcer()
        self.keys = [BlockKey(block.to_bytes(32, "big")) for block in range(num_blocks)]
        self.per_block = per_block

    def save(self, blocks: range, keys: Sequence[BlockKey]) -> None:
        """Store blocks in host memory."""
        self.announcer.expect(keys, [pages_of(block, self.per_block) for block in blocks])
        self.announcer.log.append(BlocksStored("host", keys))

    def copy(self, _: range, keys: Sequence[BlockKey]) -> None:
        """Copy them to SSD."""
        self.announcer.log.append(BlocksStored("ssd", keys))

    def remove(self, _: range, keys: Sequence[BlockKey]) -> None:
        """Let them leave both."""
        for tier in ("host", "ssd"):
            self.announcer.log.append(BlocksRemoved(tier, keys))

    def run(self, change: Callable[[range, Sequence[BlockKey]], None]) -> list[float]:
        """Return microseconds a block of each step; what the engine says of it is not in them."""
        times_us = []
        for start in range(0, len(self.keys), STEP_BLOCKS):
            blocks = range(start, start + STEP_BLOCKS)
            change(blocks, self.keys[start : start + STEP_BLOCKS])
            begin = time.perf_counter()
            self.announcer.take()
            times_us.append((time.perf_counter() - begin) * 1e6 / STEP_BLOCKS)
        return times_us


def resident_bytes() -> int:
    """Return the memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def bench(num_blocks: int, per_block: int) -> Iterator[Row]:
    """Store, copy and remove `num_blocks`; say what is kept of each."""
    rig = Rig(num_blocks, per_block)
    before = resident_bytes()
    for case, change in (
        ("in host memory", rig.save),
        ("and on SSD", rig.copy),
        ("removed from both", rig.remove),
    ):
        times_us = rig.run(change)
        yield {
            "benchmark": "announcer",
            "case": case,
            "blocks": num_blocks,
            "pages_a_block": per_block,
            "bytes_a_block": round((resident_bytes() - before) / num_blocks),
            **rows.spread("us_a_block", times_us),
            "rounds": len(times_us),
        }


def main() -> None:
    """Print the table, and write its rows as JSON lines where asked to."""
    parser = argparse.ArgumentParser(description="Measure what routers are told for.")
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    arguments = parser.parse_args()
    around = rows.circumstances()
    measured = []
    for per_block in (1, 4):
        for row in bench(arguments.blocks, per_block):
            measured.append({**row, **around})
            print(
                f"{row['case']:<18}{per_block:>3} pages a block{row['bytes_a_block']:>6} bytes"
                f"{row['us_a_block']:>8.2f} us",
                flush=True,
            )
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
