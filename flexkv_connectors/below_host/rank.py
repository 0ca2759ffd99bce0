"""One rank of an engine as its stores see it: the user's options, and its place."""

from collections.abc import Mapping
from dataclasses import dataclass

from flexkv_core.config import CacheConfig, parse_config
from flexkv_core.data.tiers.ssd.from_config import ssd_options
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.env import read_environment
from flexkv_core.errors import ConfigError
from flexkv_core.events import EventLog

__all__ = ["StorageRank", "parse_options"]

_OF_A_HOST_TIER = frozenset(
    {"cpu_cache_gb", "load_async", "min_load_tokens", "use_hugepage_cpu_buffer"}
)
"""Options of a host tier of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRank:
    """What all stores of one rank go by."""

    cache: CacheConfig
    """Has an SSD tier."""

    quota_bytes: int
    """The part of `ssd_cache_gb` of a rank that writes."""

    num_replicas: int
    """Ranks that keep the same KV, this one included; the first of them writes it."""

    is_follower: bool
    """Whether another rank writes what all replicas have."""

    engine_id: str
    """The same on all ranks of the engine, and never another engine's."""

    events: EventLog | None = None
    """Where it is logged what is written and what leaves; None for nowhere."""

    @property
    def has_followers(self) -> bool:
        """Whether other ranks read what this one writes."""
        return self.num_replicas > 1 and not self.is_follower

    def ssd_options(self, quota_bytes: int, *, is_replicated: bool) -> SsdOptions:
        """Return what a store may use of the SSD, and whether others follow it."""
        has_followers = is_replicated and self.has_followers
        return ssd_options(self.cache, quota_bytes, has_followers=has_followers)


def parse_options(options: Mapping[str, object], host_tier: str) -> CacheConfig:
    """Merge the options of the file and the environment with the engine's.

    Args:
        options: Ours of those that the engine was started with.
        host_tier: Who has the host tier, and where the engine is told about it.

    Raises:
        ConfigError: One sentence about the first option that cannot be used.
    """
    for name in options:
        if name in _OF_A_HOST_TIER:
            msg = f"{name} means nothing here: {host_tier}"
            raise ConfigError(msg)
    cache = parse_config(read_environment(), options)
    if cache.ssd_cache_bytes is None:
        raise ConfigError("there is nowhere to store: set ssd_cache_gb above 0, and ssd_cache_dir")
    return cache
