"""How much slower a forward pass is while the lane copies."""

import itertools
from collections.abc import Callable, Iterator

from benchmarks.gpu import machine
from benchmarks.gpu.kernel import grid
from benchmarks.gpu.lane_rig import LaneRig
from benchmarks.gpu.shapes import LAYOUTS, MODELS, block_format
from benchmarks.rows import Row, spread

PROGRAMS = (4, 16, 132)
"""Multiprocessors that the kernel takes at most."""


def slowdowns(rounds: int, payload: int, width: int) -> Iterator[Row]:
    """Compare a decode-like and a prefill-like loop with and without a transfer beside it."""
    model = MODELS[0]
    num_blocks = max(1, payload // block_format(model, 64).block_bytes)
    rig = LaneRig(model, LAYOUTS[0], 64, 16, num_blocks)
    transfers = {"save": rig.save, "load": rig.load, "both": rig.both}
    cases = itertools.product(loops(width).items(), PROGRAMS, transfers.items())
    for (name, compute), programs, (kind, queue) in cases:
        with grid(_num_programs=lambda _, programs=programs: programs):
            ratios = list(rounds_of(compute, rig, queue, rounds))[1:]
        case = {"loop": name, "programs": programs, "kind": kind}
        yield {"benchmark": "gpu_slowdown", **case, **spread("slowdown", ratios), "rounds": rounds}
    rig.close()


def rounds_of(
    compute: Callable[[], None], rig: LaneRig, queue: Callable[[], None], rounds: int
) -> Iterator[float]:
    """Yield time with a transfer over time alone; the first of `rounds` + 1 does not count."""

    def compute_beside() -> None:
        queue()  # what a save gathers is gathered on the compute stream, so it is in this time
        compute()

    for _ in range(rounds + 1):
        alone = compute_seconds(compute)
        beside = compute_seconds(compute_beside)
        rig.finish()
        yield beside / alone


def compute_seconds(run: Callable[[], None]) -> float:
    """Return how long the compute stream takes for what `run` queues, whatever others do."""
    import torch  # noqa: PLC0415 not there everywhere

    machine.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def loops(width: int) -> dict[str, Callable[[], None]]:
    """Return loops of about the length of a transfer: bound by memory, and by arithmetic."""
    import torch  # noqa: PLC0415

    weights = torch.randn(width, width, device=machine.DEVICE, dtype=torch.bfloat16)
    few, many = (
        torch.randn(rows, width, device=machine.DEVICE, dtype=torch.bfloat16) for rows in (8, 4096)
    )

    def decode() -> None:
        for _ in range(100):
            few @ weights

    def prefill() -> None:
        for _ in range(5):
            many @ weights

    return {"decode-like": decode, "prefill-like": prefill}
