"""vLLM's requests: their tokens, what else enters their keys, and the pages of a step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from flexkv_connectors.announcer import BlockPages
from flexkv_connectors.session.request import RequestState
from flexkv_connectors.vllm.adapters import Adapters
from flexkv_connectors.vllm.deployment import VllmDeployment
from flexkv_connectors.vllm.events import kind_of, pages_of
from flexkv_connectors.vllm.support import why_not_request, why_not_skip
from flexkv_connectors.vllm.switches import Switches
from flexkv_core.block.keys import KeyChain, MediaSpan, chain_seed
from flexkv_core.block.types import BlockKey, RequestId

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

__all__ = ["VllmRequest", "computed_by"]


class VllmRequest(RequestState):
    """One request of vLLM. Everything that changes its KV enters its keys."""

    __slots__ = (
        "_adapter",
        "_adapters",
        "_has_identity",
        "_namespace",
        "num_promised_tokens",
        "request",
    )

    _deployment: VllmDeployment

    def __init__(
        self, request: "Request", adapters: Adapters, deployment: VllmDeployment, switches: Switches
    ) -> None:
        """Note the arrival of a request; `release_adapter` has to follow."""
        super().__init__(RequestId(request.request_id), deployment, None)
        self.request = request
        self._namespace = switches.namespace
        self._adapters = adapters
        lora = request.lora_request
        self._adapter = None if lora is None else adapters.begin(lora)
        self._has_identity = why_not_request(request) is None
        self.may_load = self._has_identity and switches.load and why_not_skip(request) is None
        self.may_save = self._has_identity and switches.save
        self.num_promised_tokens = 0
        """Tokens that vLLM has accepted from us since it computed the request last."""

    @property
    @override
    def num_tokens(self) -> int:
        return int(self.request.num_tokens)

    @property
    @override
    def max_usable_tokens(self) -> int:
        is_late = self._deployment.cache.load_async
        return self.num_tokens if is_late else super().max_usable_tokens

    @property
    @override
    def num_draft_blocks(self) -> int:
        return self._deployment.draft_blocks

    @property
    @override
    def num_durable_blocks(self) -> int | None:
        """Leading blocks that may outlive the process: those before the first multimodal item.

        The identifier of an item is a hash of its content, or what a client has sent as its
        `uuid`: nothing here can tell the two apart.
        """
        if self._deployment.cache.media_ids_are_hashes:
            return None
        offsets = [item.mm_position.offset for item in self.request.mm_features]
        return min(offsets) // self._deployment.block_tokens if offsets else None

    @property
    def has_keys(self) -> bool:
        """Whether its blocks have keys yet: the content of an adapter is read in the background."""
        is_known = self._adapter is None or self._adapter.digest is not None
        return self._has_identity and is_known

    @override
    def keys(self) -> Sequence[BlockKey]:
        if self.chain is None and self.has_keys:
            seed = chain_seed(
                cache_salt=self.request.cache_salt,
                adapter=None if self._adapter is None else self._adapter.digest,
                request_namespace=self._namespace,
            )
            self.chain = KeyChain(self._deployment.block_tokens, seed)
        return super().keys()

    @override
    def extend(self, chain: KeyChain) -> None:
        media = [
            MediaSpan(item.mm_position.offset, item.mm_position.length, item.identifier)
            for item in self.request.mm_features
        ]
        chain.advance(self.request.all_token_ids, media)

    @override
    def num_savable_blocks(self, num_computed: int) -> int:
        num_blocks = super().num_savable_blocks(num_computed)
        if num_blocks <= self.num_tried_blocks:
            return num_blocks
        # The files of an adapter are compared only if there is something new to save.
        return num_blocks if self.has_keys and self.check_adapter() else 0

    @override
    def describe(self, blocks: range) -> Sequence[BlockPages]:
        """Names of vLLM's say nothing of a caller's namespace, nor of an adapter's content."""
        has_own_name = self._namespace is None and (
            self._adapter is None or self._adapters.is_only_one(self._adapter)
        )
        if not has_own_name:
            return ()
        page_tokens, block_tokens = self._deployment.page_tokens, self._deployment.block_tokens
        kind = kind_of(self.request, page_tokens)
        starts = range(blocks.start * block_tokens, blocks.stop * block_tokens, block_tokens)
        described = [
            pages_of(self.request, kind, range(start, start + block_tokens), page_tokens)
            for start in starts
        ]
        told = [pages for pages in described if pages is not None]
        return told if len(told) == len(described) else ()

    def check_adapter(self, num_local_tokens: int = 0) -> bool:
        """Stop caching the request if its adapter is not the one its keys name any more.

        Args:
            num_local_tokens: Tokens found in vLLM's own prefix cache, which knows an adapter by its
                name alone.

        Returns:
            Whether it still is, or there is none.
        """
        if self._adapter is None:
            return True
        if num_local_tokens > 0 and not self._adapters.is_only_one(self._adapter):
            self.may_save = False
        if self._adapters.holds(self._adapter):
            return True
        self.may_load = self.may_save = False
        return False

    def begin_run(self, page_ids: Iterable[int], num_computed: int) -> None:
        """Note that vLLM starts to compute the request, or resumes it, in `page_ids`.

        After a preemption some of its blocks may have left the cache: all are tried again.

        Args:
            page_ids: All of its pages.
            num_computed: Tokens whose KV is in them already.
        """
        self.check_adapter(num_computed - self.num_promised_tokens)
        self.page_ids = list(page_ids)
        self.num_promised_tokens = 0
        self.note_tried(0)

    def release_adapter(self) -> None:
        """Note that the request has ended, and with it its use of an adapter."""
        if self._adapter is not None:
            is_computed = self.request.num_output_tokens > 0
            self._adapters.end(self.request.lora_request, self._adapter, is_computed=is_computed)


def computed_by(
    output: "SchedulerOutput", states: Mapping[RequestId, VllmRequest]
) -> Iterator[tuple[VllmRequest, int]]:
    """Take over the page tables of a step, and yield what it computes.

    Yields:
        Each request of `states` that may have blocks to save, and its tokens computed once the
        step is done.
    """
    for new in output.scheduled_new_reqs:
        if state := states.get(new.req_id):
            state.begin_run(new.block_ids[0], new.num_computed_tokens)
            yield state, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id]
    cached = output.scheduled_cached_reqs
    rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
    num_scheduled, state_of = output.num_scheduled_tokens, states.get
    for request_id, new_block_ids, num_computed in rows:  # often thousands, and nothing to do
        state = state_of(request_id)
        if state is None:
            continue
        if new_block_ids and request_id in cached.resumed_req_ids:
            state.begin_run(new_block_ids[0], num_computed)
        elif new_block_ids:
            state.page_ids.extend(new_block_ids[0])
        num_tokens = num_computed + num_scheduled[request_id]
        if num_tokens >= state.next_save_tokens:
            yield state, num_tokens
