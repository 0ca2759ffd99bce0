"""Objects of vLLM's that tests make up, where the real one needs more than the test has.

They cannot drift: what a class of the installed vLLM does not have, no object made here has.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

from vllm.config import (
    AttentionConfig,
    CacheConfig,
    DeviceConfig,
    MultiModalConfig,
    VllmConfig,
)

__all__ = [
    "device_config",
    "media_config",
    "placement_config",
    "stand_in",
]


def stand_in(cls: type, **attributes: Any) -> SimpleNamespace:
    """Return an object with some attributes of `cls`.

    Raises:
        AttributeError: The class has no such attribute.
    """
    known = {field.name for field in dataclasses.fields(cls)} | set(dir(cls))
    if unknown := attributes.keys() - known:
        msg = f"{cls.__name__} has no {', '.join(sorted(unknown))} in this vLLM"
        raise AttributeError(msg)
    return SimpleNamespace(**attributes)


def placement_config(layout: Any, num_pages: int) -> SimpleNamespace:
    """Return what vLLM reads to place a cache of `num_pages` pages in a `KVCacheLayout`."""
    cache = stand_in(
        CacheConfig,
        get_resolved_kv_cache_layout=lambda: layout,
        num_gpu_blocks_override=num_pages,
        prefix_cache_retention_interval=None,
    )
    attention = stand_in(AttentionConfig, hisparse_config=None)
    return stand_in(VllmConfig, attention_config=attention, cache_config=cache)


def device_config(device_type: str) -> SimpleNamespace:
    """Return the configuration of a device that is not in this machine."""
    return stand_in(DeviceConfig, device_type=device_type)


def media_config(**settings: Any) -> SimpleNamespace:
    """Return the configuration of a model that reads media; the tiny ones read text alone."""
    return stand_in(MultiModalConfig, **settings)
