"""Which requests vLLM's offloading may serve and keep, and what else names their KV."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from flexkv_connectors.vllm.adapters import Adapter, Adapters
from flexkv_connectors.vllm.offloading.engine import OffloadingEngine, TierRequest
from flexkv_connectors.vllm.support import why_not_request, why_not_skip
from flexkv_connectors.vllm.switches import SwitchReader

if TYPE_CHECKING:
    from vllm.v1.request import Request

__all__ = ["Permit", "Requests"]

logger = logging.getLogger(__name__)


class Permit(NamedTuple):
    """What may be done for one request."""

    may_load: bool
    may_save: bool
    tier_request: TierRequest


class Requests:
    """All requests of one engine that have not ended.

    vLLM's host tier knows an adapter by its name alone, so a name that has stood for two contents
    is neither loaded nor saved.

    Thread: the scheduler's.
    """

    def __init__(self, engine: OffloadingEngine, adapters: Adapters) -> None:
        """Begin without requests."""
        self._media_ids_are_hashes = engine.cache.media_ids_are_hashes
        self._adapters = adapters
        self._switches = SwitchReader(engine.counters)
        self._of_adapters: dict[str, tuple[Request, Adapter]] = {}
        self._has_said_namespaces = False

    def begin(self, request: "Request") -> Permit:
        """Judge a request that is seen for the first time; `end` has to follow."""
        switches = self._switches.read(request.kv_transfer_params)
        adapter = self._begin_adapter(request)
        is_known = why_not_request(request) is None and not self._asks_for(switches.namespace)
        if adapter is not None:
            is_known = is_known and adapter.digest is not None and self._is_certain(adapter)
        tier_request = TierRequest(
            None if adapter is None else adapter.digest, self._num_durable_tokens(request)
        )
        may_load = is_known and switches.load and why_not_skip(request) is None
        return Permit(may_load, is_known and switches.save, tier_request)

    def find_doubtful(self, names: Iterable[str]) -> list[str]:
        """Return those of some requests whose adapter may have changed under them."""
        if not self._of_adapters:
            return []
        self._adapters.look_again()
        asked = [(name, self._of_adapters[name]) for name in names if name in self._of_adapters]
        return [name for name, (_, adapter) in asked if not self._is_certain(adapter)]

    def end(self, request: "Request") -> None:
        """Note that a request has ended."""
        if of_adapter := self._of_adapters.pop(request.request_id, None):
            _, adapter = of_adapter
            is_computed = request.num_output_tokens > 0
            self._adapters.end(request.lora_request, adapter, is_computed=is_computed)

    def _asks_for(self, namespace: str | None) -> bool:
        """Return whether a request asks for a namespace, which the host tier does not have."""
        if namespace is not None and not self._has_said_namespaces:
            self._has_said_namespaces = True
            logger.warning(
                "request.namespace: requests with a namespace of their own are not cached, as "
                "vLLM's host memory knows none: set cache_salt, which keeps tenants apart"
            )
        return namespace is not None

    def _begin_adapter(self, request: "Request") -> Adapter | None:
        if request.lora_request is None:
            return None
        adapter = self._adapters.begin(request.lora_request)
        self._of_adapters[request.request_id] = request, adapter
        return adapter

    def _is_certain(self, adapter: Adapter) -> bool:
        return self._adapters.holds(adapter) and self._adapters.is_only_one(adapter)

    def _num_durable_tokens(self, request: "Request") -> int | None:
        """Return the tokens before the first medium, whose identifier may be a client's own."""
        if self._media_ids_are_hashes:
            return None
        return min((item.mm_position.offset for item in request.mm_features), default=None)
