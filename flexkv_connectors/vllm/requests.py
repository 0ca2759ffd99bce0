"""What the scheduler half remembers of one request."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.session.tier_use import TierUse
from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.deployment import Deployment
from flexkv_connectors.vllm.request_keys import RequestKeys, num_text_blocks
from flexkv_connectors.vllm.switches import Switches
from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.lease import Lease
from flexkv_core.errors import TokenError
from flexkv_core.excerpt import clipped

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["RequestState", "follow"]

logger = logging.getLogger(__name__)


class RequestState:
    """One request of the engine, from its arrival to its end."""

    __slots__ = (
        "_adapter",
        "_adapters",
        "_deployment",
        "_keys",
        "lease",
        "may_load",
        "may_save",
        "num_loading_tokens",
        "num_local_tokens",
        "num_tried_blocks",
        "page_ids",
        "request",
        "ssd_use",
    )

    def __init__(
        self, request: "Request", adapters: Adapters, deployment: Deployment, switches: Switches
    ) -> None:
        """Note the arrival of a request; `end` has to follow."""
        self.request = request
        self._deployment = deployment
        self._adapters = adapters
        lora = request.lora_request
        self._adapter = None if lora is None else adapters.begin(lora)
        self._keys = RequestKeys(
            request,
            self._adapter,
            block_tokens=deployment.block_tokens,
            namespace=switches.namespace,
        )
        self.may_load = self._keys.are_possible and switches.load
        self.may_save = self._keys.are_possible and switches.save
        self.lease: Lease | None = None
        """What the last offer stands on, until the engine takes it or asks again."""

        self.ssd_use: TierUse | None = None
        """What it has to do with the SSD tier, once there is one."""

        self.num_local_tokens = 0
        """The engine's own prefix hit when it was last offered something."""

        self.num_loading_tokens = 0
        """Tokens the engine waits for; while there are any, its pages hold nothing to save."""

        self.num_tried_blocks = 0
        """Leading blocks whose saving was decided; what did not fit then is tried with the next."""

        self.page_ids: list[int] = []
        """The engine's page table of the request."""

    @property
    def request_id(self) -> RequestId:
        """The engine's name of the request."""
        return RequestId(self.request.request_id)

    @property
    def has_keys(self) -> bool:
        """Whether its blocks have keys yet: the content of an adapter is read in the background."""
        return self._keys.are_known

    def keys(self) -> Sequence[BlockKey]:
        """Return the keys of all full blocks of the tokens known by now, if they have any."""
        try:
            self._keys.advance()
        except TokenError as error:
            logger.warning("request.not_cached id=%s: %s", clipped(self.request_id), error)
            self.may_load = self.may_save = False
        return self._keys.so_far

    def is_sound(self, num_local_tokens: int = 0) -> bool:
        """Return whether the engine computes it with what its keys say; else it is not cached.

        Args:
            num_local_tokens: What it has got from the engine's own prefix cache, which knows an
                adapter by its name alone.
        """
        if self._adapter is None:
            return True
        if num_local_tokens > 0 and not self._adapters.is_only_one(self._adapter):
            self.may_save = False
        if self._adapters.holds(self._adapter):
            return True
        self.may_load = self.may_save = False
        return False

    @property
    def usable_tokens(self) -> int:
        """Tokens of the lease that the engine may skip.

        A step that loads and computes at once has to compute one token at least.
        """
        if self.lease is None:
            return 0
        usable = self.lease.num_blocks * self._deployment.block_tokens
        if self._deployment.cache.load_async:
            return usable
        page_tokens = self._deployment.page_tokens
        return min(usable, int(self.request.num_tokens - 1) // page_tokens * page_tokens)

    @property
    def num_lasting_blocks(self) -> int | None:
        """Leading blocks that may outlive the process; None for all."""
        if self._deployment.cache.media_ids_are_hashes:
            return None
        return num_text_blocks(self.request, self._deployment.block_tokens)

    def num_savable_blocks(self, num_computed: int) -> int:
        """Return how many blocks can be saved once `num_computed` tokens are computed."""
        if not (self.may_save and self.has_keys):
            return 0
        num_tokens = min(num_computed, self.request.num_tokens)
        return int(num_tokens // self._deployment.block_tokens - self._deployment.draft_blocks)

    def pages_between(self, end: int) -> list[int]:
        """Return the pages of tokens [num_local_tokens, end): no other request reads them."""
        page_tokens = self._deployment.page_tokens
        return self.page_ids[self.num_local_tokens // page_tokens : end // page_tokens]

    def begin_run(self, page_ids: Iterable[int], num_computed: int) -> None:
        """Note that the engine computes the request from now on, in `page_ids`.

        After a preemption some of its blocks may have left the cache: all are looked at again.

        Args:
            page_ids: All pages of it.
            num_computed: Tokens whose KV is there before.
        """
        self.is_sound(num_computed - self.num_loading_tokens)
        self.page_ids = list(page_ids)
        self.num_loading_tokens = 0
        self.num_tried_blocks = 0

    def end(self) -> None:
        """Note that the request has ended."""
        if self._adapter is not None:
            is_computed = self.request.num_output_tokens > 0
            self._adapters.end(self.request.lora_request, self._adapter, is_computed=is_computed)


def follow(
    states: Mapping[str, RequestState], output: "SchedulerOutput"
) -> Iterator[tuple[RequestState, int]]:
    """Take over the page tables of a step, and yield what it computes.

    Yields:
        Each scheduled request of `states`, and its tokens computed once the step is done.
    """
    for new in output.scheduled_new_reqs:
        if state := states.get(new.req_id):
            state.begin_run(new.block_ids[0], new.num_computed_tokens)
            yield state, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id]
    cached = output.scheduled_cached_reqs
    rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
    for request_id, new_block_ids, num_computed in rows:
        if state := states.get(request_id):
            added = new_block_ids[0] if new_block_ids else ()
            if request_id in cached.resumed_req_ids:
                state.begin_run(added, num_computed)
            else:
                state.page_ids.extend(added)
            yield state, num_computed + output.num_scheduled_tokens[request_id]
