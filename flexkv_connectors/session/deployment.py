"""The shape and the options of an engine that uses our host tier."""

from dataclasses import dataclass
from typing import NamedTuple

from flexkv_core.block.cells import columns_of
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.config import CacheConfig
from flexkv_core.errors import ConfigError

__all__ = ["Deployment", "PageShape", "block_tokens_of", "require_cells"]

_DEFAULT_BLOCK_TOKENS = 64


class PageShape(NamedTuple):
    """One layer's page as the engine declares it; its tensors are checked against this."""

    num_heads: int
    page_tokens: int
    token_bytes: int
    """Size of one token's content in one head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One engine's parallel shape, page geometry and cache options.

    Ranks count through pipeline stages and, inside a stage, through tensor-parallel ranks.
    `num_replicas` consecutive ranks hold identical KV; the first of them owns the copy.
    """

    cache: CacheConfig
    rank: int
    num_ranks: int
    num_replicas: int
    num_engines: int
    """Engines of this server on this node that share `cpu_cache_gb` (data parallelism)."""

    num_nodes: int
    """Machines over which this engine's ranks are spread evenly."""

    page_shape: PageShape
    num_layers: int
    """Layers of this rank's stage: those of the model, then draft layers."""

    first_layer: int
    """Index of its stage's first layer in the whole model."""

    total_heads: int
    """KV heads of the whole model; 1 for MLA."""

    cell_heads: int
    """KV heads in a cell: those of a rank at the largest parallel degree that shares blocks."""

    block_tokens: int
    step_tokens: int
    """The most tokens that one step computes, over all requests."""

    engine_id: str
    """Names the engine: the same on all of its ranks, and different for every engine."""

    @property
    def owners(self) -> range:
        """Ranks that own a host pool."""
        return range(0, self.num_ranks, self.num_replicas)

    @property
    def borrowers(self) -> frozenset[int]:
        """Ranks that read the pool of another rank."""
        return frozenset(range(self.num_ranks)) - frozenset(self.owners)

    @property
    def owner(self) -> int:
        """The rank that owns this rank's host pool."""
        return self.rank - self.rank % self.num_replicas

    @property
    def num_local_owners(self) -> int:
        """Owners on this node."""
        return max(1, len(self.owners) // self.num_nodes)

    @property
    def is_owner(self) -> bool:
        """Whether this rank owns a host pool."""
        return self.rank == self.owner

    @property
    def page_tokens(self) -> int:
        """Tokens in one of the engine's blocks, our pages."""
        return self.page_shape.page_tokens

    @property
    def pages_per_block(self) -> int:
        """Pages in one of our blocks."""
        return self.block_tokens // self.page_tokens

    @property
    def block_format(self) -> BlockFormat:
        """This rank's share of a block."""
        return BlockFormat(
            num_heads=self.page_shape.num_heads,
            num_layers=self.num_layers,
            block_tokens=self.block_tokens,
            token_bytes=self.page_shape.token_bytes,
            cell_heads=self.cell_heads,
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """The heads and layers in each cell of this rank's share of a block, in slot order."""
        num_heads = self.page_shape.num_heads
        num_shards = self.total_heads // num_heads
        shard = self.rank // self.num_replicas % num_shards
        return columns_of(
            range(shard * num_heads, (shard + 1) * num_heads),
            range(self.first_layer, self.first_layer + self.num_layers),
            self.cell_heads,
        )

    @property
    def ssd_quota_bytes(self) -> int | None:
        """This rank's part of `ssd_cache_gb`, if it owns a pool; None for no SSD tier."""
        total_bytes = self.cache.ssd_cache_bytes
        return None if total_bytes is None else total_bytes // len(self.owners)


def block_tokens_of(cache: CacheConfig, page_tokens: int, engine: str) -> int:
    """Return the block size: as configured, or the default rounded down to whole pages.

    Args:
        cache: The user's options.
        page_tokens: Tokens in one of the engine's blocks.
        engine: Its name, for the error message.

    Raises:
        ConfigError: The configured size is not a multiple of the page size.
    """
    if cache.block_tokens is None:
        return max(1, _DEFAULT_BLOCK_TOKENS // page_tokens) * page_tokens
    if cache.block_tokens % page_tokens:
        msg = (
            f"block_tokens is {cache.block_tokens}, but {engine}'s block is {page_tokens} tokens "
            f"here: set block_tokens to a multiple of {page_tokens}, or leave it out"
        )
        raise ConfigError(msg)
    return cache.block_tokens


def require_cells(cache: CacheConfig, engine: str) -> CacheConfig:
    """Return the options of an engine whose pages are converted to cells in the host tier.

    Raises:
        ConfigError: They ask for another format of blocks.
    """
    if cache.block_format != "cells":
        msg = (
            f"block_format is {cache.block_format}, which {engine} does not offer: leave it out, "
            "or keep it in the options of the engine that does"
        )
        raise ConfigError(msg)
    return cache
