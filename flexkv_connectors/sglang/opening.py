"""From a deployment to its store: staging memory, lanes and files."""

from contextlib import closing

from flexkv_connectors.common.ssd_files import open_ssd_tier
from flexkv_connectors.sglang.deployment import Deployment
from flexkv_connectors.sglang.ssd_store import SsdStore
from flexkv_core.namespace import Namespace
from flexkv_core.tiers.host import HostPool, slot_stride
from flexkv_core.transfer.cpu_lane import CpuLane
from flexkv_core.transfer.staged_lane import StagedLane
from flexkv_core.transfer.tier_lane import TierLane

__all__ = ["open_store"]

_STAGING_BYTES = 64 << 20
"""Staging memory of one direction."""

_MAX_SLOTS = 128
"""HiCache asks for so many pages at once."""


def open_store(deployment: Deployment, namespace: Namespace) -> SsdStore:
    """Open this rank's store.

    Raises:
        ConfigError: None of the directories can be used.
        TierError: There is no memory to stage blocks in.
    """
    block_format = deployment.block_format
    num_slots = _STAGING_BYTES // slot_stride(block_format.block_bytes)
    num_slots = min(max(num_slots, 2), _MAX_SLOTS)
    # Nobody else maps the pool: its memory goes with the last view, when the store is closed.
    with closing(HostPool.create(2 * num_slots, block_format.block_bytes)) as pool:
        tier = open_ssd_tier(
            deployment.cache,
            namespace,
            deployment.columns,
            block_format,
            pool,
            deployment.quota_bytes,
            deployment.engine_id,
        )

        def lane(slots: range) -> StagedLane:
            near = CpuLane(0, deployment.pages, block_format, pool)
            return StagedLane(0, near, TierLane(0, tier, pool), slots)

        return SsdStore(
            tier,
            lane(range(num_slots)),
            lane(range(num_slots, 2 * num_slots)),
            eviction_policy=deployment.cache.eviction_policy,
            load_limit_s=deployment.cache.promotion_timeout_s,
        )
