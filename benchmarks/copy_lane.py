"""Gather and scatter of the CPU lane against one plain numpy copy of the same bytes.

Every round runs each case and the plain copy with the same number of threads, one after the other,
so that a noisy machine disturbs both; ratios are taken within a round. Where others use the
machine, the ratio of processor time is the steadier one. All memory is faulted in before. Prints a
table, and writes one JSON row for each line of it with `--json`.

Run from the root of the checkout: `python -m benchmarks.copy_lane [--json FILE] [--rounds N]`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import rows
from benchmarks.rows import Row
from flexkv_core.block.layout import BlockFormat
from flexkv_core.block.types import JobId
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.plan import Endpoint, EnginePages, HostSlots, Status, TransferPlan
from flexkv_core.testing.geometry import make_pages

BLOCK_TOKENS = 64
PAYLOAD_BYTES = 256 << 20

DENSE = {"L": 32, "H": 8, "N": 64, "C": 512}  # 8 KV heads of 128 values in bf16, K and V packed
SPLIT = {**DENSE, "P": 2, "C": 256}
GEOMETRIES: dict[str, tuple[str, dict[str, int]]] = {
    "LBHNC packed": ("LBHNC", DENSE),
    "LBNHC packed": ("LBNHC", DENSE),
    "LBHNC packed, pages of 16": ("LBHNC", {**DENSE, "N": 16}),
    "split K/V [2,B,N,H,D]": ("LPBNHC", SPLIT),
    "split K/V [B,2,N,H,D]": ("LBPNHC", SPLIT),
    "MLA [B,1,N,576]": ("LBNHC", {"L": 61, "H": 1, "N": 64, "C": 1152}),
}


class Case(NamedTuple):
    """One line of the table: the same number of bytes moved in two ways."""

    geometry: str
    operation: str
    num_threads: int
    num_bytes: int
    run: Callable[[], None]
    run_plain: Callable[[], None]


class Seconds(NamedTuple):
    """What a run took on the clock, and of the processors."""

    wall: float
    cpu: float


def plain_copy(num_bytes: int, num_threads: int) -> Callable[[], None]:
    """Return a copy between two arrays, in as many equal pieces as threads."""
    source, target = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    pieces = [slice(*bounds) for bounds in _pieces(num_bytes, num_threads)]
    threads = ThreadPoolExecutor(num_threads)

    def copy(piece: slice) -> None:
        target[piece] = source[piece]

    def run() -> None:
        others = [threads.submit(copy, piece) for piece in pieces[1:]]
        copy(pieces[0])
        for other in others:
            other.result()

    return run


def _pieces(num_bytes: int, count: int) -> list[tuple[int, int]]:
    bounds = np.linspace(0, num_bytes, count + 1, dtype=np.int64)
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def make_cases(geometry: str) -> list[Case]:
    """Build both directions with one and two threads."""
    axes, sizes = GEOMETRIES[geometry]
    pages_per_block = BLOCK_TOKENS // sizes["N"]
    block_bytes = BLOCK_TOKENS * sizes["L"] * sizes["H"] * sizes["C"] * sizes.get("P", 1)
    num_blocks = PAYLOAD_BYTES // block_bytes
    memory, pool = make_pages(axes, B=2 * num_blocks * pages_per_block, **sizes)
    fmt = BlockFormat(
        num_heads=pool.num_heads,
        num_layers=pool.num_layers,
        block_tokens=BLOCK_TOKENS,
        token_bytes=pool.token_bytes,
        cell_heads=1,
    )
    host = HostPool.create(num_blocks, block_bytes)
    np.frombuffer(host.buffer, np.uint8)[:] = 1
    random = np.random.default_rng(0)
    blocks = random.permutation(2 * num_blocks)[:num_blocks, None] * pages_per_block
    pages = EnginePages((blocks + np.arange(pages_per_block)).ravel().tolist())
    slots = HostSlots(random.permutation(num_blocks).tobytes())
    cases = []
    for num_threads in (1, 2):
        lane = CpuLane(0, pool, fmt, host, num_threads=num_threads)
        plain = plain_copy(num_blocks * block_bytes, num_threads)
        size = num_blocks * block_bytes
        save = _runner(lane, pages, slots, num_blocks, keep=memory)
        load = _runner(lane, slots, pages, num_blocks, keep=memory)
        cases.append(Case(geometry, "gather", num_threads, size, save, plain))
        cases.append(Case(geometry, "scatter", num_threads, size, load, plain))
    return cases


def _runner(
    lane: CpuLane, source: Endpoint, target: Endpoint, num_blocks: int, keep: object
) -> Callable[[], None]:
    """Return a call that executes one plan; it keeps `keep` alive, which the lane does not."""
    plan = TransferPlan(job_id=JobId(1), source=source, target=target, num_blocks=num_blocks)

    def run(_: object = keep) -> None:
        lane.submit(plan)
        (result,) = lane.poll()
        assert result.status is Status.OK, result.error

    return run


def measure(cases: list[Case], rounds: int) -> list[Row]:
    """Run everything `rounds` times, interleaved, after one round that does not count."""
    samples: list[list[tuple[Seconds, Seconds]]] = [[] for _ in cases]
    for _ in range(rounds + 1):
        for case, pairs in zip(cases, samples, strict=True):
            pairs.append((_time(case.run), _time(case.run_plain)))
    return [_row(case, pairs[1:]) for case, pairs in zip(cases, samples, strict=True)]


def _time(run: Callable[[], None]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _row(case: Case, pairs: list[tuple[Seconds, Seconds]]) -> Row:
    lane_s = statistics.median(lane.wall for lane, _ in pairs)
    plain_s = statistics.median(plain.wall for _, plain in pairs)
    return {
        "benchmark": "copy_lane",
        "geometry": case.geometry,
        "operation": case.operation,
        "threads": case.num_threads,
        "gb_s": round(case.num_bytes / lane_s / 1e9, 2),
        "plain_gb_s": round(case.num_bytes / plain_s / 1e9, 2),
        **rows.spread("ratio", (plain.wall / lane.wall for lane, plain in pairs)),
        "cpu_ratio": round(statistics.median(plain.cpu / lane.cpu for lane, plain in pairs), 3),
        "rounds": len(pairs),
    }


def main() -> None:
    """Measure all geometries and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file to write one JSON object a row to")
    arguments = parser.parse_args()
    around: Row = {**rows.circumstances(), "numpy": np.__version__}
    measured: list[Row] = []
    print(f"{'geometry':28} {'operation':9} threads   GB/s  plain  ratio (min-max)   of cpu")
    for geometry in GEOMETRIES:
        for row in measure(make_cases(geometry), arguments.rounds):
            measured.append({**row, **around})
            low, high = row["ratio_min_max"]
            print(
                f"{geometry:28} {row['operation']:9} {row['threads']:7} {row['gb_s']:6.2f}"
                f" {row['plain_gb_s']:6.2f}  {row['ratio']:.2f} ({low:.2f}-{high:.2f})"
                f"  {row['cpu_ratio']:7.2f}",
                flush=True,
            )
    if arguments.json:
        rows.write(arguments.json, measured)


if __name__ == "__main__":
    main()
