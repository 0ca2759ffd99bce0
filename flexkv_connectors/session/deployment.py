"""What a deployment of any engine with a host tier of ours is: its shape and its options."""

from dataclasses import dataclass
from typing import NamedTuple

from flexkv_core.block.cells import columns_of
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.config import CacheConfig
from flexkv_core.errors import ConfigError

__all__ = ["Deployment", "PageShape", "block_tokens_of", "require_cells"]

_DEFAULT_BLOCK_TOKENS = 64


class PageShape(NamedTuple):
    """What the engine declared about one layer's page, to hold its tensors against."""

    num_heads: int
    page_tokens: int
    token_bytes: int
    """Content of one token and head."""


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
    """Layers of this rank's stage, draft layers behind those of the model."""

    first_layer: int
    """Where its stage begins in the whole model."""

    total_heads: int
    """KV heads of the whole model; 1 for MLA."""

    cell_heads: int
    """KV heads in a cell: those of a rank at the largest degree that shares blocks."""

    block_tokens: int
    step_tokens: int
    """Tokens that a step computes at most, all requests together."""

    engine_id: str
    """The same on every rank of the engine, and its own."""

    @property
    def owners(self) -> range:
        """Ranks that own a host pool."""
        return range(0, self.num_ranks, self.num_replicas)

    @property
    def replicas(self) -> frozenset[int]:
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
        """What the cells of this rank's share of a block hold, in their order in a host slot."""
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
    """Return the block size: the one asked for, or the default in whole pages.

    Args:
        cache: The user's options.
        page_tokens: Tokens in one of the engine's blocks.
        engine: Its name, for people.

    Raises:
        ConfigError: What was asked for is not whole pages.
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
    """Return options of an engine whose pages are converted on their way to the host tier.

    Raises:
        ConfigError: Its blocks are to be stored as its pages are.
    """
    if cache.block_format != "cells":
        msg = (
            f"block_format is {cache.block_format}, which {engine} has not: leave it out, or keep "
            "it in SGLang's extra config"
        )
        raise ConfigError(msg)
    return cache
