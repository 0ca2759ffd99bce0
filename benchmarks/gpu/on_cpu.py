"""What a CPU can do in a GPU's place, for tests, and random transfers on it.

    python -m benchmarks.gpu.on_cpu [--transfers N]

copies with the kernel's reference, or, with TRITON_INTERPRET=1, with the kernel itself, which takes
hundreds of times as long.
"""

import argparse
from collections.abc import Callable

import flexkv_kernels
import pytest
import torch
from triton import knobs

from benchmarks.gpu import machine
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.exactness import exactness
from flexkv_core.testing.instant_streams import use_instant_streams

HOUR_S = 3600.0


class InstantTimer:
    """An event of a stream that runs at once; everything takes a millisecond."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def elapsed_time(self, _end: "InstantTimer") -> float:
        """Return a millisecond."""
        return 1.0


def stand_in(monkeypatch: pytest.MonkeyPatch, copy: Callable[..., None]) -> None:
    """Let the CPU be the GPU: streams that run at once, nothing pinned, `copy` for the kernel."""
    use_instant_streams(monkeypatch, copy)
    monkeypatch.setattr(machine, "DEVICE", "cpu")
    monkeypatch.setattr(flexkv_kernels, "copy_pages", copy)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", InstantTimer)


def main() -> None:
    """Print a row for each layout."""
    parser = argparse.ArgumentParser(description="Random transfers, without a GPU.")
    parser.add_argument("--transfers", type=int, default=20_000, help="in each layout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several would wait for one another, copy by small copy
    reference = flexkv_kernels.copy_pages_torch
    copy = flexkv_kernels.copy_pages if knobs.runtime.interpret else reference
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(monkeypatch, copy)
        for row in exactness(arguments.transfers, Budget(HOUR_S)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
