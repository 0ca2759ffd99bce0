"""What the options of the whole cache mean for one rank's SSD tier."""

from collections.abc import Sequence

from flexkv_core.block.layout import Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.config import CacheConfig
from flexkv_core.data.tiers.ssd.directory import directories_of
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, slot_bytes
from flexkv_core.data.tiers.ssd.generations import Generations
from flexkv_core.data.tiers.ssd.options import SsdOptions

__all__ = ["nominal_blocks", "record_reset", "ssd_options"]


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
