"""From a deployment to its store: memory to move blocks through, lanes and files."""

from collections.abc import Callable
from contextlib import closing

from flexkv_connectors.sglang.deployment import Deployment
from flexkv_core.block.namespace import Namespace
from flexkv_core.block_store.chain_store import ChainAccess, ChainFollower, ChainStore
from flexkv_core.data.tiers.base import Tier
from flexkv_core.data.tiers.host import HostPool, slot_stride
from flexkv_core.data.tiers.memory import BlockMemory, PageMemory
from flexkv_core.data.tiers.ssd.follower import Follower
from flexkv_core.data.tiers.ssd.from_config import open_ssd_tier, ssd_options
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.data.transfer.direct_lane import DirectLane
from flexkv_core.data.transfer.lane import Lane
from flexkv_core.data.transfer.staged_lane import StagedLane
from flexkv_core.data.transfer.tier_lane import TierLane

__all__ = ["open_store"]

_STAGING_BYTES = 64 << 20
"""Staging memory of one direction."""

_MAX_SLOTS = 128
"""HiCache asks for so many pages at once."""


def open_store(deployment: Deployment, namespace: Namespace) -> ChainAccess:
    """Open this rank's store.

    Raises:
        ConfigError: None of the directories can be used.
        TierError: There is no memory to stage blocks in.
    """
    if deployment.memory is None:
        return _open_staged(deployment, namespace)
    return _open_direct(deployment, namespace, deployment.memory)


def _open_direct(deployment: Deployment, namespace: Namespace, memory: PageMemory) -> ChainAccess:
    """Open a store of blocks that are moved straight between files and pages."""

    def lane(tier: Tier, _: int) -> DirectLane:
        return DirectLane(0, TierLane(0, tier, memory))

    return _open(deployment, namespace, memory, lane)


def _open_staged(deployment: Deployment, namespace: Namespace) -> ChainAccess:
    """Open a store of cells, which are made from pages and back."""
    block_format = deployment.block_format
    num_slots = _STAGING_BYTES // slot_stride(block_format.block_bytes)
    num_slots = min(max(num_slots, 2), _MAX_SLOTS)
    # Nobody else maps the pool: its memory goes with the last view, when the store is closed.
    with closing(HostPool.create(2 * num_slots, block_format.block_bytes)) as pool:

        def lane(tier: Tier, way: int) -> StagedLane:
            near = CpuLane(0, deployment.pages, block_format, pool)
            slots = range(way * num_slots, (way + 1) * num_slots)
            return StagedLane(0, near, TierLane(0, tier, pool.memory), slots)

        return _open(deployment, namespace, pool.memory, lane)


def _open(
    deployment: Deployment,
    namespace: Namespace,
    memory: BlockMemory,
    lane: Callable[[Tier, int], Lane],
) -> ChainAccess:
    """Open a rank's files, its own or those of the rank that it follows.

    Args:
        deployment: The rank.
        namespace: Of its blocks.
        memory: What blocks are read to and written from.
        lane: Makes the lane of one direction: 0 to load, 1 to save.
    """
    blocks = (namespace, deployment.columns, deployment.block_format.cell_bytes)
    options = ssd_options(
        deployment.cache, deployment.quota_bytes, has_followers=deployment.has_followers
    )
    load_limit_s = deployment.cache.promotion_timeout_s
    if deployment.is_follower:
        follower = Follower(memory, *blocks, options, deployment.engine_id)
        return ChainFollower(follower, lane(follower, 0), load_limit_s=load_limit_s)
    tier = open_ssd_tier(options, *blocks, memory, deployment.engine_id)
    return ChainStore(
        tier,
        lane(tier, 0),
        lane(tier, 1),
        eviction_policy=deployment.cache.eviction_policy,
        load_limit_s=load_limit_s,
    )
