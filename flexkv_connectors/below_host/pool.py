"""One of an engine's host pools as a description, and the store that is opened from it."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from flexkv_connectors.below_host.rank import StorageRank
from flexkv_core.block.layout import BlockFormat, Column, PagePool
from flexkv_core.block.namespace import Namespace
from flexkv_core.block_store.block_store import BlockStore, open_follower, open_writer
from flexkv_core.block_store.blocks import Access
from flexkv_core.data.tiers.base import Tier
from flexkv_core.data.tiers.host import HostPool, slot_stride
from flexkv_core.data.tiers.memory import BlockMemory, PageMemory
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.format import slot_bytes
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.lane import AsyncLane
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane

__all__ = ["CellPages", "StoredPool", "open_store"]

_STAGING_BYTES = 64 << 20
"""Staging memory of one direction."""

_MAX_SLOTS = 128
"""Of one direction. More than one call asks for would stay empty: HiCache's asks for 128 pages."""

_MakeLane = Callable[[Tier, int], AsyncLane]
"""Makes the lane of one direction: 0 to load, 1 to save."""


@dataclass(frozen=True, slots=True)
class CellPages:
    """Pages that are converted to cells and back, over staging memory."""

    pages: PagePool
    block_format: BlockFormat
    """Of this rank's share of a block, which is one page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPool:
    """One rank's pages of one host pool, and how they are stored."""

    name: str
    """The engine's."""

    namespace: Namespace
    """What the pages are blocks of."""

    columns: tuple[Column, ...]
    """This rank's, in the order of a block's cells."""

    cell_bytes: int
    num_pages: int
    access: Access
    content: CellPages | PageMemory
    """How a block is made from a page; a `PageMemory` is stored as it is, without a copy."""

    is_replicated: bool
    """All replicas of a rank have the same pages, and the first stores them."""

    @property
    def stored_bytes(self) -> int:
        """What all pages would take on SSD."""
        return self.num_pages * len(self.columns) * slot_bytes(self.cell_bytes)

    def is_followed_by(self, rank: StorageRank) -> bool:
        """Whether another rank writes what `rank` reads."""
        return self.is_replicated and rank.is_follower


def open_store(rank: StorageRank, pool: StoredPool, quota_bytes: int) -> BlockStore:
    """Open the store of a pool: this rank's own files, or those of the rank that it follows.

    Raises:
        TierError: No directory can be used now, or there is no memory to stage blocks in.
    """
    if isinstance(pool.content, PageMemory):
        return _open_direct(rank, pool, quota_bytes, pool.content)
    return _open_staged(rank, pool, quota_bytes, pool.content)


def _open_direct(
    rank: StorageRank, pool: StoredPool, quota_bytes: int, memory: PageMemory
) -> BlockStore:
    """Open a store whose blocks go straight between files and pages."""

    def make_lane(tier: Tier, _: int) -> DirectLane:
        return DirectLane(0, TierLane(0, tier, memory))

    return _open(rank, pool, quota_bytes, memory, make_lane)


def _open_staged(
    rank: StorageRank, pool: StoredPool, quota_bytes: int, content: CellPages
) -> BlockStore:
    """Open a store of cells."""
    pages, block_format = content.pages, content.block_format
    num_slots = _STAGING_BYTES // slot_stride(block_format.block_bytes)
    num_slots = min(max(num_slots, 2), _MAX_SLOTS)
    # To close it only gives up the file, which nobody else maps: the memory lives as long as views
    # of it, which the lanes and the tier have until the store is closed.
    with closing(HostPool.create(2 * num_slots, block_format.block_bytes)) as staging:

        def make_lane(tier: Tier, direction: int) -> StagedLane:
            near = CpuLane(0, pages, block_format, staging)
            slots = range(direction * num_slots, (direction + 1) * num_slots)
            return StagedLane(0, near, TierLane(0, tier, staging.memory), slots)

        return _open(rank, pool, quota_bytes, staging.memory, make_lane)


def _open(
    rank: StorageRank,
    pool: StoredPool,
    quota_bytes: int,
    memory: BlockMemory,
    make_lane: _MakeLane,
) -> BlockStore:
    """Open the files, on the memory that blocks are read to and written from."""
    share = BlockShare(pool.namespace, pool.columns, pool.cell_bytes, rank.engine_id)
    options = rank.ssd_options(quota_bytes, is_replicated=pool.is_replicated)
    load_limit_s = rank.cache.promotion_timeout_s
    if pool.is_followed_by(rank):
        follower = Follower(memory, share, options.directories)
        lane = make_lane(follower, 0)
        return open_follower(follower, lane, access=pool.access, load_limit_s=load_limit_s)
    tier = SsdTier(memory, share, options)
    return open_writer(
        tier,
        (make_lane(tier, 0), make_lane(tier, 1)),
        access=pool.access,
        eviction_policy=rank.cache.eviction_policy,
        load_limit_s=load_limit_s,
        events=rank.events,
    )
