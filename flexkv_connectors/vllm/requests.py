"""What the scheduler half remembers of one request."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flexkv_connectors.common.tier_use import TierUse
from flexkv_connectors.vllm.request_keys import media_spans
from flexkv_connectors.vllm.switches import Switches
from flexkv_core.errors import TokenError
from flexkv_core.excerpt import clipped
from flexkv_core.keys import KeyChain
from flexkv_core.lease import Lease
from flexkv_core.types import BlockKey, RequestId

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["RequestState", "follow"]

logger = logging.getLogger(__name__)


class RequestState:
    """One request of the engine, from its arrival to its end."""

    __slots__ = (
        "_chain",
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

    def __init__(self, request: "Request", chain: KeyChain | None, switches: Switches) -> None:
        self.request = request
        self._chain = chain
        self.may_load = chain is not None and switches.load
        self.may_save = chain is not None and switches.save
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

    def keys(self) -> Sequence[BlockKey]:
        """Return the keys of all full blocks of the tokens known by now, if they have any."""
        if self._chain is None:
            return ()
        try:
            self._chain.advance(self.request.all_token_ids, media_spans(self.request))
        except TokenError as error:
            logger.warning("request.not_cached id=%s: %s", clipped(self.request_id), error)
            self.may_load = self.may_save = False
        return self._chain.keys

    def begin_run(self, page_ids: Iterable[int]) -> None:
        """Note that the engine computes the request from now on, in `page_ids`.

        After a preemption some of its blocks may have left the cache: all are looked at again.
        """
        self.page_ids = list(page_ids)
        self.num_loading_tokens = 0
        self.num_tried_blocks = 0


def follow(
    states: Mapping[str, RequestState], output: "SchedulerOutput"
) -> Iterator[tuple[RequestState, int]]:
    """Take over the page tables of a step, and yield what it computes.

    Yields:
        Each scheduled request of `states`, and its tokens computed once the step is done.
    """
    for new in output.scheduled_new_reqs:
        if state := states.get(new.req_id):
            state.begin_run(new.block_ids[0])
            yield state, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id]
    cached = output.scheduled_cached_reqs
    rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
    for request_id, new_block_ids, num_computed in rows:
        if state := states.get(request_id):
            added = new_block_ids[0] if new_block_ids else ()
            if request_id in cached.resumed_req_ids:
                state.begin_run(added)
            else:
                state.page_ids.extend(added)
            yield state, num_computed + output.num_scheduled_tokens[request_id]
