"""The GPU as benchmarks use it: memory on both sides, and time on the clock of the host."""

import importlib.util
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import Row

if TYPE_CHECKING:
    import torch

DEVICE = "cuda"


def why_no_gpu() -> str | None:
    """Name what is missing to measure anything."""
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    import torch  # noqa: PLC0415 not there everywhere

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def circumstances() -> Row:
    """Return what a figure of a GPU means nothing without."""
    import torch  # noqa: PLC0415
    import triton  # noqa: PLC0415

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of the kernel's driver, or that it is not told here."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text()) if file.exists() else None
    return found[0] if found else "unknown"


def on_device(num_bytes: int) -> "torch.Tensor":
    """Return random bytes in device memory: zeros may be copied faster than data."""
    import torch  # noqa: PLC0415

    return torch.randint(256, (num_bytes,), dtype=torch.uint8, device=DEVICE)


def pinned(num_bytes: int) -> "torch.Tensor":
    """Return pinned host memory, every page of it touched."""
    import torch  # noqa: PLC0415

    return torch.ones(num_bytes, dtype=torch.uint8).pin_memory()


def seconds(run: Callable[[], None]) -> float:
    """Return how long `run` takes, from an idle device to an idle device."""
    synchronize()
    begin = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    """Wait until the device has nothing to do."""
    import torch  # noqa: PLC0415

    torch.cuda.synchronize()
