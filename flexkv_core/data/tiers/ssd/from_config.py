"""Opens one rank's SSD tier as the options say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.config import CacheConfig
from flexkv_core.data.tiers.memory import BlockMemory
from flexkv_core.data.tiers.ssd.column_tier import BlockShare
from flexkv_core.data.tiers.ssd.directory import directories_of, open_directories
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, slot_bytes
from flexkv_core.data.tiers.ssd.generations import Generations
from flexkv_core.data.tiers.ssd.options import SsdOptions
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.errors import ConfigError, TierError

__all__ = ["nominal_blocks", "open_ssd_tier", "record_reset", "require_directory", "ssd_options"]


def ssd_options(cache: CacheConfig, quota_bytes: int, *, has_followers: bool = False) -> SsdOptions:
    """Return what one rank may use of the SSD.

    Args:
        cache: Has an SSD tier.
        quota_bytes: This rank's share of the space.
        has_followers: Whether other ranks read what this one writes.
    """
    return SsdOptions(
        directories=cache.ssd_directories,
        quota_bytes=quota_bytes,
        directory_cap_bytes=cache.ssd_directory_cap_bytes,
        has_followers=has_followers,
        leftover_bytes=cache.ssd_cache_bytes or 0,
    )


def require_directory(options: SsdOptions) -> None:
    """Reject directories if none can be used, before their content is known.

    Raises:
        ConfigError: None of them can be written to.
    """
    with _as_config_error():
        open_directories(options)


def nominal_blocks(options: SsdOptions, num_columns: int, cell_bytes: int) -> int:
    """Return how many blocks a rank has room for, if its disks have the space."""
    slab_bytes = len(options.directories) * PAGE_BYTES
    return max(0, (options.quota_bytes // num_columns - slab_bytes) // slot_bytes(cell_bytes))


def record_reset(
    options: SsdOptions, blank: Namespace, columns: Sequence[Column], name: str
) -> None:
    """Make everything stored before a reset unfindable, though no file is open yet.

    Args:
        options: Where the blocks are.
        blank: `Origin.blank`. Without a name for the weights there is nothing to record.
        columns: This rank's.
        name: Of the new generation; never used before.
    """
    Generations(directories_of(options), blank, columns).begin(name)


def open_ssd_tier(options: SsdOptions, share: BlockShare, memory: BlockMemory) -> SsdTier:
    """Open one rank's files, and begin to look for what earlier processes left.

    Args:
        options: `ssd_options`.
        share: What is stored.
        memory: What blocks are read to and written from.

    Raises:
        ConfigError: None of the directories can be used.
    """
    with _as_config_error():
        return SsdTier(memory, share, options)


@contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except TierError as error:
        msg = f"ssd_cache_dir cannot be used: {error.reason}; name a directory that can be"
        raise ConfigError(msg) from error
