"""How a block's bytes are cut into cells, the same for all engines that share them."""

from flexkv_core.block.layout import Column
from flexkv_core.errors import ConfigError

__all__ = ["BLOCK_FORMAT", "BLOCK_FORMAT_VERSION", "cell_heads_of", "columns_of"]

BLOCK_FORMAT = "cells"
BLOCK_FORMAT_VERSION = 2
"""In version 1, pages of vLLM on a CPU were stored in the order of its kernel."""


def cell_heads_of(total_heads: int, degree: int, max_tp: int | None) -> int:
    """Return the KV heads of one rank at the largest tensor-parallel degree.

    Args:
        total_heads: KV heads of the whole model; 1 for MLA.
        degree: This engine's tensor-parallel degree.
        max_tp: The largest degree among the engines that share blocks; None for this engine's.

    Raises:
        ConfigError: The degrees, or a degree and the heads, do not divide.
    """
    largest = max_tp or degree
    if largest % degree:
        msg = (
            f"max_tp is {largest}, but this engine's tensor-parallel degree is {degree}: set "
            f"max_tp to a multiple of {degree}, or leave it out"
        )
        raise ConfigError(msg)
    if total_heads % largest and largest % total_heads:
        msg = (
            f"max_tp is {largest}, but {total_heads} KV heads cannot be spread over so many ranks: "
            f"set max_tp to a divisor or a multiple of {total_heads}, or leave it out"
        )
        raise ConfigError(msg)
    return max(1, total_heads // largest)


def columns_of(heads: range, layers: range, cell_heads: int) -> tuple[Column, ...]:
    """Return the columns of a rank's share of a block, in the order of their cells in a block.

    Args:
        heads: The rank's KV heads, numbered in the whole model.
        layers: The rank's layers, numbered in the whole model.
        cell_heads: Heads in one cell: divides the number of `heads`.
    """
    return tuple(
        Column(
            first_head=first_head,
            num_heads=cell_heads,
            first_layer=layers.start,
            num_layers=len(layers),
        )
        for first_head in heads[::cell_heads]
    )
