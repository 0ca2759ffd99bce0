"""How much host memory one rank takes."""

from flexkv_connectors.session.deployment import Deployment
from flexkv_core.data.host_memory import check_host_bytes, default_cache_bytes
from flexkv_core.data.tiers.host import HostPool, num_slots_in, slot_stride
from flexkv_core.errors import ConfigError

__all__ = ["host_budget_bytes", "open_host_pool"]


def host_budget_bytes(deployment: Deployment) -> int:
    """Return the bytes that this rank's pool may take.

    `cpu_cache_gb` is for one engine on one node: its ranks there share it. Without it, the engines
    that know of each other take equal parts of what is free.

    Raises:
        ConfigError: The machine or the container does not have what was asked for.
    """
    asked = deployment.cache.cpu_cache_bytes
    if asked is None:
        return default_cache_bytes(deployment.num_engines) // deployment.num_local_owners
    check_host_bytes(asked)
    return asked // deployment.num_local_owners


def open_host_pool(deployment: Deployment, budget_bytes: int) -> HostPool:
    """Open this rank's pool in at most `budget_bytes`.

    Raises:
        ConfigError: Not even one block fits.
        TierError: The kernel does not give the memory.
    """
    slot_bytes = deployment.block_format.block_bytes
    num_slots = num_slots_in(budget_bytes, slot_bytes)
    if num_slots < 1:
        msg = (
            f"the host tier gets {budget_bytes} bytes on this rank, but one block takes "
            f"{slot_stride(slot_bytes)}: raise cpu_cache_gb, or lower block_tokens"
        )
        raise ConfigError(msg)
    return HostPool.create(
        num_slots, slot_bytes, huge_pages=deployment.cache.use_hugepage_cpu_buffer
    )
