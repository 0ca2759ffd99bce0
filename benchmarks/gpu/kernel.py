"""The kernel alone, for every grid that may be chosen: in device memory, and on pinned memory."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks.gpu.budget import compare
from benchmarks.gpu.limits import FlatCopies
from benchmarks.gpu.machine import on_device, pinned, seconds
from benchmarks.gpu.shapes import LAYOUTS, MODELS, Model, block_format, make_slabs
from benchmarks.rows import Row

if TYPE_CHECKING:
    import torch

PROGRAMS = (4, 8, 16, 32, 132)
TILES = (512, 1024, 4096)
WARPS = (4, 8)

DIRECT_PROGRAMS = (1, 2, 4, 8, 12, 16, 32)
DIRECT_WARPS = (4, 8, 16)
"""With the largest tile: what is in flight over PCIe is programs times tile."""


def grids(rounds: int, payload: int) -> Iterator[Row]:
    """Gather into blocks in device memory, for programs, words of a tile, and warps."""
    copier = Copier(MODELS[0], LAYOUTS[0], payload, on_device)
    flat = on_device(copier.num_bytes), on_device(copier.num_bytes)
    runs = {"flat": lambda: seconds(lambda: flat[0].copy_(flat[1]))}
    for grid in itertools.product(PROGRAMS, TILES, WARPS):
        runs[name_of(*grid)] = with_grid(copier.gather, *grid)
    for row in compare(runs, dict.fromkeys(runs, copier.num_bytes), rounds):
        yield {"benchmark": "gpu_kernel", "model": MODELS[0].name, "layout": LAYOUTS[0], **row}


def direct(rounds: int, payload: int) -> Iterator[Row]:
    """Let the kernel itself read and write pinned memory: no staging, but programs that wait."""
    copier = Copier(MODELS[0], LAYOUTS[0], payload, pinned)
    copies = FlatCopies(copier.num_bytes)
    kinds = {"save": (copies.out, copier.gather), "load": (copies.into, copier.scatter)}
    for kind, (flat, run) in kinds.items():
        runs = {"flat": lambda flat=flat: seconds(flat)}
        for programs, warps in itertools.product(DIRECT_PROGRAMS, DIRECT_WARPS):
            grid = programs, TILES[-1], warps
            runs[name_of(*grid)] = with_grid(run, *grid)
        for row in compare(runs, dict.fromkeys(runs, copier.num_bytes), rounds):
            yield {"benchmark": "gpu_direct", "model": MODELS[0].name, "kind": kind, **row}


class Copier:
    """Random pages on the device, and blocks of 64 tokens in what `memory` returns."""

    def __init__(
        self, model: Model, axes: str, payload: int, memory: "Callable[[int], torch.Tensor]"
    ) -> None:
        import torch  # noqa: PLC0415 not there everywhere
        from flexkv_kernels import PageViews  # noqa: PLC0415 the same

        fmt = block_format(model, 64)
        num_blocks = max(1, payload // fmt.block_bytes)
        self.num_bytes = num_blocks * fmt.block_bytes
        self._pages = PageViews(make_slabs(model, axes, 8 * num_blocks, 16))
        shape = num_blocks, fmt.num_heads, fmt.num_layers, fmt.block_tokens, fmt.token_bytes
        self._blocks = PageViews.of_blocks(memory(self.num_bytes).view(shape))
        # A GPU reaches pinned memory by the address that the CPU has for it.
        self._blocks.device = self._pages.device
        self._ids = torch.randperm(8 * num_blocks)[: 4 * num_blocks], torch.arange(4 * num_blocks)

    def gather(self) -> None:
        """Queue pages into blocks."""
        self._copy_pages(self._pages, self._ids[0], self._blocks, self._ids[1])

    def scatter(self) -> None:
        """Queue blocks into pages."""
        self._copy_pages(self._blocks, self._ids[1], self._pages, self._ids[0])

    def _copy_pages(self, *sides: object) -> None:
        import flexkv_kernels  # noqa: PLC0415 the same

        flexkv_kernels.copy_pages(*sides)


def name_of(programs: int, tile_words: int, warps: int) -> str:
    """Name a grid."""
    return f"{programs} programs, {tile_words} words, {warps} warps"


def with_grid(
    run: Callable[[], None], programs: int, tile_words: int, warps: int
) -> Callable[[], float]:
    """Return `run`, timed, with another grid than the launcher's own."""

    def timed() -> float:
        with grid(_num_programs=lambda _: programs, _TILE_WORDS=tile_words, _WARPS=warps):
            return seconds(run)

    return timed


def grid(**choices: object) -> AbstractContextManager[object]:
    """Let the launcher choose otherwise for as long as this is entered."""
    # The package's attribute of this name is the function, not its module.
    return mock.patch.multiple(sys.modules["flexkv_kernels.copy_pages"], **choices)
