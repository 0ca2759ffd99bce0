"""The control plane of one engine's tiers."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flexkv_connectors.session.deployment import Deployment
from flexkv_core.block.types import BlockKey
from flexkv_core.control.hierarchy.lower_tier import LowerTier
from flexkv_core.control.manager import CacheManager, TierSpec
from flexkv_core.events import EventLog
from flexkv_core.metrics import Recorder

__all__ = ["Tiers", "open_tiers"]

logger = logging.getLogger(__name__)


class Tiers(NamedTuple):
    """The control plane of all tiers, and of the one below host memory, if there is one."""

    manager: CacheManager
    ssd: LowerTier | None

    def find(self, keys: Sequence[BlockKey]) -> Iterator[tuple[str, int]]:
        """Yield how many leading blocks of `keys` each tier has."""
        for tier in ("host", "ssd") if self.ssd is not None else ("host",):
            yield tier, self.manager.lookup(keys, tier=tier).num_ready

    def record_use(self, recorder: Recorder) -> None:
        """Set the gauges that say how full the tiers are."""
        recorder.set("host_used_blocks", self.manager.num_used_blocks("host"))
        if self.ssd is not None:
            recorder.set("ssd_used_blocks", self.manager.num_used_blocks("ssd"))
            recorder.set("ssd_capacity_blocks", self.ssd.capacity_blocks)
            recorder.set("ssd_off", self.ssd.is_off)


def open_tiers(
    deployment: Deployment,
    num_host_blocks: int,
    num_ssd_blocks: int,
    recorder: Recorder,
    events: EventLog | None,
) -> Tiers:
    """Begin with empty tiers of the sizes that every owner has; 0 for no SSD tier."""
    policy = deployment.cache.eviction_policy
    specs = [TierSpec("host", num_host_blocks, policy)]
    if num_ssd_blocks:
        specs.append(TierSpec("ssd", num_ssd_blocks, policy, addressed_by="key"))
    recorder.set("host_capacity_blocks", num_host_blocks)
    logger.info(
        "connector.ready host_blocks=%d ssd_blocks=%d block_tokens=%d ranks=%d",
        num_host_blocks,
        num_ssd_blocks,
        deployment.block_tokens,
        deployment.num_ranks,
    )
    manager = CacheManager(
        specs,
        ranks=deployment.num_ranks,
        owners=deployment.owners,
        recorder=recorder,
        events=events,
    )
    if not num_ssd_blocks:
        return Tiers(manager, None)
    ssd = LowerTier(
        manager,
        "ssd",
        owners=deployment.owners,
        block_bytes=deployment.block_format.block_bytes,
        timeout_s=deployment.cache.promotion_timeout_s,
        recorder=recorder,
    )
    return Tiers(manager, ssd)
