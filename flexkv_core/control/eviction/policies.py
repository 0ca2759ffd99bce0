"""The eviction policies by name."""

import difflib
from collections.abc import Mapping
from typing import Any

from flexkv_core.control.eviction.base import EvictionPolicy, Item
from flexkv_core.control.eviction.lru import LruPolicy
from flexkv_core.control.eviction.s3fifo import S3FifoPolicy
from flexkv_core.errors import ConfigError

__all__ = ["POLICIES", "create_policy"]

POLICIES: Mapping[str, type[EvictionPolicy[Any]]] = {"lru": LruPolicy, "s3fifo": S3FifoPolicy}


def create_policy(name: str, capacity_blocks: int) -> EvictionPolicy[Item]:
    """Return an empty policy `name` for a tier of `capacity_blocks`.

    Raises:
        ConfigError: No policy has this name.
    """
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0)
        expected = ", ".join(POLICIES)
        msg = f"eviction_policy is {name!r}, expected one of {expected}: did you mean {near[0]!r}?"
        raise ConfigError(msg)
    return POLICIES[name](capacity_blocks)
