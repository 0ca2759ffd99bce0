"""What is known of one request of an engine that gives us pages."""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

from flexkv_connectors.announcer import BlockPages
from flexkv_connectors.session.deployment import Deployment
from flexkv_connectors.session.lower_tier_request import LowerTierRequest
from flexkv_core.block.keys import KeyChain
from flexkv_core.block.types import BlockKey, RequestId
from flexkv_core.control.lease import Lease
from flexkv_core.errors import TokenError
from flexkv_core.excerpt import clipped

__all__ = ["RequestState"]

logger = logging.getLogger(__name__)


class RequestState(ABC):
    """One request, from its arrival to its end.

    Subclasses supply its tokens, and what else enters its keys.

    Thread: the scheduler's.
    """

    __slots__ = (
        "_deployment",
        "_may_save",
        "chain",
        "is_counted",
        "is_loading",
        "lease",
        "lower",
        "may_load",
        "next_save_tokens",
        "num_tried_blocks",
        "offer",
        "page_ids",
        "request_id",
    )

    def __init__(
        self, request_id: RequestId, deployment: Deployment, chain: KeyChain | None
    ) -> None:
        """Note the arrival of a request.

        Args:
            request_id: Its name.
            deployment: The engine's shape.
            chain: The keys of its blocks; None while there are none, or if there never will be.
        """
        self.request_id = request_id
        self._deployment = deployment
        self.chain = chain
        self.may_load = True
        self._may_save = True
        self.lease: Lease | None = None
        """The blocks of the last offer, until its load is planned or the offer is withdrawn."""

        self.offer = range(0)
        """Tokens that were last offered to the engine, or that are being loaded for it."""

        self.is_counted = False
        """Whether it has been counted as a use of what the tiers hold."""

        self.is_loading = False
        """Whether a plan in flight writes to its pages."""

        self.page_ids: list[int] = []
        """The engine's page table of the request; an id below 0 is no page."""

        self.note_tried(0)
        self.lower: LowerTierRequest | None = None
        """Its dealings with the SSD tier, if there is one."""

    @property
    def may_save(self) -> bool:
        """Whether its blocks are still to be saved."""
        return self._may_save

    @may_save.setter
    def may_save(self, may_save: bool) -> None:
        self._may_save = may_save
        self.note_tried(self.num_tried_blocks)

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens known by now."""

    @abstractmethod
    def extend(self, chain: KeyChain) -> None:
        """Add the keys of all full blocks of the tokens known by now.

        Raises:
            TokenError: A token id is not an unsigned 32-bit integer. No key was added.
        """

    @property
    def max_usable_tokens(self) -> int:
        """Leading tokens that may be loaded at most.

        A step that loads and computes at once has to compute one token at least; the tokens
        before it are loaded in whole pages.
        """
        page_tokens = self._deployment.page_tokens
        return (self.num_tokens - 1) // page_tokens * page_tokens

    @property
    def num_draft_blocks(self) -> int:
        """Full blocks at the end of what is computed whose KV may still change."""
        return 0

    @property
    def num_durable_blocks(self) -> int | None:
        """Leading blocks that may outlive the process; None for all."""
        return None

    def keys(self) -> Sequence[BlockKey]:
        """Return the keys of all full blocks of the tokens known by now, if they have any."""
        if self.chain is None:
            return ()
        if self.may_load or self.may_save:
            try:
                self.extend(self.chain)
            except TokenError as error:
                logger.warning("request.not_cached id=%s: %s", clipped(self.request_id), error)
                self.may_load = self.may_save = False
        return self.chain.keys

    @abstractmethod
    def describe(self, blocks: range) -> Sequence[BlockPages]:
        """Return what routers are told of `blocks`, or nothing if it cannot be said."""

    def note_tried(self, num_blocks: int) -> None:
        """Note that the saving of the first `num_blocks` blocks was decided.

        What did not fit then is tried with the next.
        """
        self.num_tried_blocks = num_blocks
        num_full_blocks = num_blocks + 1 + self.num_draft_blocks
        num_tokens = num_full_blocks * self._deployment.block_tokens
        self.next_save_tokens = num_tokens if self._may_save else sys.maxsize
        """Computed tokens below which there is nothing more to save: engines ask in each step."""

    def offered_pages(self) -> list[int]:
        """Return the pages of the offer up to the first that is missing: of this request alone."""
        first_page = self.offer.start // self._deployment.page_tokens
        return self.page_ids[first_page : self._num_pages(self.offer.stop)]

    def num_savable_blocks(self, num_computed: int) -> int:
        """Return how many leading blocks can be saved once `num_computed` tokens are computed."""
        if not self.may_save:
            return 0
        num_draft_tokens = self.num_draft_blocks * self._deployment.block_tokens
        num_tokens = min(num_computed, self.num_tokens) - num_draft_tokens
        num_blocks = num_tokens // self._deployment.block_tokens
        if num_blocks <= self.num_tried_blocks:
            return max(num_blocks, 0)
        # Pages of blocks that were tried are there, so only new ones are looked at.
        pages_per_block = self._deployment.pages_per_block
        num_pages = self._num_pages(num_tokens, self.num_tried_blocks * pages_per_block)
        return num_pages // pages_per_block

    def num_ssd_tokens(self, loaded: range) -> int:
        """Return how many of the tokens that are loaded were on SSD when the request came.

        What a preempted request has computed or loaded before comes back from host memory.
        """
        if self.lower is None:
            return 0
        num_host_blocks = max(self.lower.num_host_blocks, self.num_tried_blocks)
        num_host_tokens = num_host_blocks * self._deployment.block_tokens
        return max(0, loaded.stop - max(num_host_tokens, loaded.start))

    def _num_pages(self, num_tokens: int, num_seen: int = 0) -> int:
        """Return how many pages `num_tokens` tokens fill, up to the first that is missing."""
        end = min(num_tokens // self._deployment.page_tokens, len(self.page_ids))
        return next((at for at in range(num_seen, end) if self.page_ids[at] < 0), end)
