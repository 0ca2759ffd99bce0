"""LoRA adapters in SGLang's keys: by what an adapter holds, and not by its name alone.

SGLang begins the keys of a request with the id of its adapter. Of one that is named at the start
(`--lora-paths`), that is a digest of its name and its path, which may hold other weights tomorrow;
of one that is loaded later, it is random. So the identity of the adapter is put before the id, as
part of the request's extra key. A list of adapters that changes then concerns none of the others,
nor the model itself.
"""

import logging
from typing import TYPE_CHECKING

from flexkv_connectors.sglang.settings import EngineSettings, hub_cache_of
from flexkv_core.config import CacheConfig
from flexkv_core.env import engine_start_s
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.identification import Identification

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

__all__ = ["identify_adapters", "name_adapter"]

logger = logging.getLogger(__name__)

_identities: dict[str, str] = {}
"""What adapters hold, by SGLang's id. Of this process: SGLang's hook knows of no storage."""

_prefixes: dict[str, str] = {}
"""What the keys of adapters begin with, by SGLang's id: decided at the first request, since
SGLang's own caches go by the same keys."""


def identify_adapters(settings: EngineSettings, cache: CacheConfig) -> list[Identification]:
    """Begin to find out what the adapters hold that were named at the start.

    Each by itself: one that was known before need not wait for those that have to be read.
    """
    hub_cache = hub_cache_of(settings)
    return [
        Identification(
            {adapter_id: Checkpoint(model=path, hub_cache=hub_cache)},
            cache.ssd_directories,
            engine_start_s(),
            _identities.update,
        )
        for adapter_id, path in settings.adapters.items()
    ]


def name_adapter(_: object, request: "Req", *__: object, **___: object) -> None:
    """Let the keys of a new request tell what its adapter holds, if it has one.

    Before that is known, they begin with the start of this engine, and no other finds them.
    """
    adapter_id = request.lora_id
    if adapter_id is None:
        return
    if adapter_id not in _prefixes:
        _prefixes[adapter_id] = _identities.get(adapter_id) or f"since:{engine_start_s()!r}"
        logger.info("connector.adapter id=%s keys=%s", adapter_id, _prefixes[adapter_id])
    request.extra_key = _prefixes[adapter_id] + (request.extra_key or "")
