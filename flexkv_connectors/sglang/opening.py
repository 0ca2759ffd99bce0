"""From a deployment to its store: memory to move blocks through, lanes and files."""

from contextlib import closing

from flexkv_connectors.common.ssd_files import open_ssd_tier
from flexkv_connectors.sglang.chain_store import ChainStore
from flexkv_connectors.sglang.deployment import Deployment
from flexkv_core.namespace import Namespace
from flexkv_core.tiers.host import HostPool, slot_stride
from flexkv_core.tiers.memory import BlockMemory, PageMemory
from flexkv_core.tiers.ssd.tier import SsdTier
from flexkv_core.transfer.cpu_lane import CpuLane
from flexkv_core.transfer.direct_lane import DirectLane
from flexkv_core.transfer.lane import Lane
from flexkv_core.transfer.staged_lane import StagedLane
from flexkv_core.transfer.tier_lane import TierLane

__all__ = ["open_store"]

_STAGING_BYTES = 64 << 20
"""Staging memory of one direction."""

_MAX_SLOTS = 128
"""HiCache asks for so many pages at once."""


def open_store(deployment: Deployment, namespace: Namespace) -> ChainStore:
    """Open this rank's store.

    Raises:
        ConfigError: None of the directories can be used.
        TierError: There is no memory to stage blocks in.
    """
    if deployment.memory is None:
        return _open_staged(deployment, namespace)
    return _open_direct(deployment, namespace, deployment.memory)


def _open_direct(deployment: Deployment, namespace: Namespace, memory: PageMemory) -> ChainStore:
    """Open a store of blocks that are moved straight between files and pages."""
    tier = _open_tier(deployment, namespace, memory)
    load_lane, save_lane = (DirectLane(0, TierLane(0, tier, memory)) for _ in range(2))
    return _store(deployment, tier, load_lane, save_lane)


def _open_staged(deployment: Deployment, namespace: Namespace) -> ChainStore:
    """Open a store of cells, which are made from pages and back."""
    block_format = deployment.block_format
    num_slots = _STAGING_BYTES // slot_stride(block_format.block_bytes)
    num_slots = min(max(num_slots, 2), _MAX_SLOTS)
    # Nobody else maps the pool: its memory goes with the last view, when the store is closed.
    with closing(HostPool.create(2 * num_slots, block_format.block_bytes)) as pool:
        tier = _open_tier(deployment, namespace, pool.memory)

        def lane(slots: range) -> StagedLane:
            near = CpuLane(0, deployment.pages, block_format, pool)
            return StagedLane(0, near, TierLane(0, tier, pool.memory), slots)

        slots = range(2 * num_slots)
        return _store(deployment, tier, lane(slots[:num_slots]), lane(slots[num_slots:]))


def _open_tier(deployment: Deployment, namespace: Namespace, memory: BlockMemory) -> SsdTier:
    return open_ssd_tier(
        deployment.cache,
        namespace,
        deployment.columns,
        deployment.block_format.cell_bytes,
        memory,
        deployment.quota_bytes,
        deployment.engine_id,
    )


def _store(deployment: Deployment, tier: SsdTier, load_lane: Lane, save_lane: Lane) -> ChainStore:
    return ChainStore(
        tier,
        load_lane,
        save_lane,
        eviction_policy=deployment.cache.eviction_policy,
        load_limit_s=deployment.cache.promotion_timeout_s,
    )
