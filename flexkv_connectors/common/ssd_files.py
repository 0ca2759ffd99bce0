"""The SSD tier of one rank, opened as the options say."""

from collections.abc import Sequence

from flexkv_core.config import CacheConfig
from flexkv_core.errors import ConfigError, TierError
from flexkv_core.layout import Column
from flexkv_core.namespace import Namespace
from flexkv_core.tiers.memory import BlockMemory
from flexkv_core.tiers.ssd.options import SsdOptions
from flexkv_core.tiers.ssd.tier import SsdTier

__all__ = ["open_ssd_tier", "ssd_options"]


def ssd_options(cache: CacheConfig, quota_bytes: int, *, has_followers: bool = False) -> SsdOptions:
    """Return what one rank may use of the SSD.

    Args:
        cache: Has an SSD tier.
        quota_bytes: This rank's part of the room.
        has_followers: Whether other ranks read what this one writes.
    """
    return SsdOptions(
        directories=cache.ssd_directories,
        quota_bytes=quota_bytes,
        directory_cap_bytes=cache.ssd_directory_cap_bytes,
        has_followers=has_followers,
        leftover_bytes=cache.ssd_cache_bytes or 0,
    )


def open_ssd_tier(
    options: SsdOptions,
    namespace: Namespace,
    columns: Sequence[Column],
    cell_bytes: int,
    memory: BlockMemory,
    engine_id: str,
) -> SsdTier:
    """Open one rank's files, and begin to look for what earlier processes left.

    Args:
        options: `ssd_options`.
        namespace: What the blocks are blocks of.
        columns: This rank's.
        cell_bytes: Size of each cell.
        memory: What blocks are read to and written from.
        engine_id: The same on all ranks of the engine, and its own.

    Raises:
        ConfigError: None of the directories can be used.
    """
    try:
        return SsdTier(memory, namespace, columns, cell_bytes, options, engine_id)
    except TierError as error:
        msg = f"ssd_cache_dir cannot be used: {error.reason}; name a directory that can be"
        raise ConfigError(msg) from error
