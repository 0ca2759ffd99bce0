"""The kernel alone, in device memory, for every grid that may be chosen."""

import itertools
import sys
from collections.abc import Callable, Iterator
from unittest import mock

from benchmarks.gpu.budget import compare
from benchmarks.gpu.limits import COPY_BYTES
from benchmarks.gpu.machine import on_device, seconds
from benchmarks.gpu.shapes import LAYOUTS, MODELS, Model, block_format, make_slabs
from benchmarks.rows import Row

PROGRAMS = (4, 8, 16, 32, 132)
TILES = (512, 1024, 4096)
WARPS = (4, 8)


def grids(rounds: int, payload: int = COPY_BYTES) -> Iterator[Row]:
    """Gather into blocks, for each count of programs, words of a tile, and warps."""
    model = MODELS[0]
    gather, num_bytes = gatherer(model, LAYOUTS[0], payload)
    flat = on_device(num_bytes), on_device(num_bytes)
    runs: dict[str, Callable[[], float]] = {"flat": lambda: seconds(lambda: flat[0].copy_(flat[1]))}
    for grid in itertools.product(PROGRAMS, TILES, WARPS):
        runs["{} programs, {} words, {} warps".format(*grid)] = with_grid(gather, *grid)
    for row in compare(runs, dict.fromkeys(runs, num_bytes), rounds):
        yield {"benchmark": "gpu_kernel", "model": model.name, "layout": LAYOUTS[0], **row}


def gatherer(model: Model, axes: str, payload: int) -> tuple[Callable[[], None], int]:
    """Return a call that gathers about `payload` bytes, and how many they are."""
    import torch  # noqa: PLC0415 not there everywhere
    from flexkv_kernels import PageViews, copy_pages  # noqa: PLC0415 the same

    fmt = block_format(model, 64)
    num_blocks = max(1, payload // fmt.block_bytes)
    pages = PageViews(make_slabs(model, axes, 8 * num_blocks, 16))
    shape = num_blocks, fmt.num_heads, fmt.num_layers, fmt.block_tokens, fmt.token_bytes
    blocks = PageViews.of_blocks(on_device(num_blocks * fmt.block_bytes).view(shape))
    ids = torch.randperm(8 * num_blocks)[: 4 * num_blocks], torch.arange(4 * num_blocks)
    return lambda: copy_pages(pages, ids[0], blocks, ids[1]), num_blocks * fmt.block_bytes


def with_grid(
    run: Callable[[], None], programs: int, tile_words: int, warps: int
) -> Callable[[], float]:
    """Return `run`, timed, with another grid than the launcher's own."""
    grid = {"_num_programs": lambda _: programs, "_TILE_WORDS": tile_words, "_WARPS": warps}

    def timed() -> float:
        # The package's attribute of this name is the function, not its module.
        with mock.patch.multiple(sys.modules["flexkv_kernels.copy_pages"], **grid):
            return seconds(run)

    return timed
