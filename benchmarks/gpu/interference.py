"""How much slower a forward pass is while the lane copies."""

from collections.abc import Callable, Iterator

from benchmarks.gpu import machine
from benchmarks.gpu.lane_rig import LaneRig
from benchmarks.gpu.limits import COPY_BYTES
from benchmarks.gpu.machine import seconds
from benchmarks.gpu.shapes import LAYOUTS, MODELS, block_format
from benchmarks.rows import Row, spread


def slowdowns(rounds: int, payload: int = COPY_BYTES, width: int = 8192) -> Iterator[Row]:
    """Compare a decode-like and a prefill-like loop with and without a transfer beside it."""
    model = MODELS[0]
    num_blocks = max(1, payload // block_format(model, 64).block_bytes)
    rig = LaneRig(model, LAYOUTS[0], 64, 16, num_blocks)
    transfers = {"save": rig.save, "load": rig.load, "both": rig.both}
    for name, compute in loops(width).items():
        for kind, queue in transfers.items():
            ratios = [ratio for ratio, counts in rounds_of(compute, rig, queue, rounds) if counts]
            figures = spread("slowdown", ratios)
            yield {"benchmark": "gpu_slowdown", "loop": name, "kind": kind, **figures}
    rig.close()


def rounds_of(
    compute: Callable[[], None], rig: LaneRig, queue: Callable[[], None], rounds: int
) -> Iterator[tuple[float, bool]]:
    """Yield time beside a transfer over time alone, and whether the round counts."""
    for index in range(rounds + 1):
        alone = seconds(compute)
        queue()
        beside = compute_seconds(compute)
        rig.finish()
        yield beside / alone, index > 0


def compute_seconds(compute: Callable[[], None]) -> float:
    """Return how long the compute stream is busy with `compute`, whatever other streams do."""
    import torch  # noqa: PLC0415 not there everywhere

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    compute()
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
        for _ in range(200):
            few @ weights

    def prefill() -> None:
        for _ in range(10):
            many @ weights

    return {"decode-like": decode, "prefill-like": prefill}
