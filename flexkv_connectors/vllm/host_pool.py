"""How large one rank's host pool is."""

from flexkv_connectors.vllm.deployment import Deployment
from flexkv_core.tiers.host import HostPool, num_slots_in

__all__ = ["open_host_pool"]


def open_host_pool(deployment: Deployment) -> HostPool:
    budget = (deployment.cache.cpu_cache_bytes or 2**30) // len(deployment.owners)
    slot_bytes = deployment.block_format.block_bytes
    pool = HostPool.create(num_slots_in(budget, slot_bytes), slot_bytes)
    pool.prefault()
    return pool
