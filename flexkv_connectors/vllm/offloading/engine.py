"""What the tier has to know of its engine beyond what vLLM hands to it."""

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from flexkv_connectors.announcer import Announcer
from flexkv_connectors.vllm.deployment import publishes_events
from flexkv_core.block.types import BlockKey
from flexkv_core.config import CacheConfig
from flexkv_core.metrics import Counters

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.kv_offload.base import OffloadKey

__all__ = ["OffloadingEngine", "TierRequest"]


@dataclass(slots=True)
class TierRequest:
    """One request as the tier sees it."""

    adapter: bytes | None = None
    """Stands for the content of its LoRA in keys, which vLLM's do not; None without one."""

    num_durable_tokens: int | None = None
    """Leading tokens whose KV may outlive the process; None for all."""

    asked: "set[OffloadKey]" = field(default_factory=set)
    """Keys that were read for it. One that failed must not be offered to it again, nor one that has
    left host memory since: where its prompt is longer than that, this would never end."""


@dataclass(slots=True)
class OffloadingEngine:
    """One engine, in the process of its scheduler."""

    vllm_config: "VllmConfig"
    kv_cache_config: "KVCacheConfig"
    cache: CacheConfig
    requests: dict[str, TierRequest] = field(default_factory=dict)
    """By vLLM's id: the connector adds them, and the tier takes them out when no call follows."""

    offered: "list[OffloadKey]" = field(default_factory=list)
    """Blocks that the tier has just said it has: vLLM begins to promote each."""

    announcer: Announcer | None = field(init=False)
    """Who tells routers of both tiers; None where vLLM publishes no events."""

    counters: Counters = field(default_factory=Counters)
    """What the connector counts; the tier reports it with its own."""

    def __post_init__(self) -> None:
        self.announcer = Announcer() if publishes_events(self.vllm_config) else None

    def block_key(self, key: "OffloadKey", request_id: str) -> BlockKey:
        """Return our name of a block, for a request that the tier knows.

        vLLM's is a hash of the tokens up to its end, with salt, media and the *name* of an adapter,
        and the number of its cache group.
        """
        return BlockKey(sha256(key + (self.requests[request_id].adapter or b"")).digest())
