"""An engine of one kind or another, in as few words as a session needs of it."""

import pytest

from flexkv_connectors.announcer import BlockPages, PageKind, pack_tokens
from flexkv_connectors.session.deployment import Deployment, PageShape
from flexkv_connectors.session.request import RequestState
from flexkv_core.block.keys import KeyChain
from flexkv_core.config import parse_config

BLOCK_TOKENS, PAGE_TOKENS = 8, 4


class PlainRequest(RequestState):
    """A request whose tokens are all that its keys depend on."""

    def __init__(self, request_id, tokens, deployment):
        super().__init__(request_id, deployment, KeyChain(deployment.block_tokens))
        self.tokens = list(tokens)

    @property
    def num_tokens(self):
        return len(self.tokens)

    def extend(self, chain):
        chain.advance(self.tokens)

    def describe(self, blocks):
        pages, tokens = self._deployment.pages_per_block, self.tokens
        return [
            BlockPages(
                names=tuple(range(block * pages + 1, (block + 1) * pages + 1)),
                parent=block * pages or None,
                packed_tokens=pack_tokens(tokens[block * BLOCK_TOKENS :][:BLOCK_TOKENS]),
                kind=PageKind(PAGE_TOKENS),
            )
            for block in blocks
        ]


@pytest.fixture
def make_deployment():
    """Return a function that describes an engine of two ranks; pages are half a block."""

    def make(**changes):
        fields = {
            "cache": parse_config({}),
            "rank": 0,
            "num_ranks": 2,
            "num_replicas": 1,
            "num_engines": 1,
            "num_nodes": 1,
            "page_shape": PageShape(num_heads=1, page_tokens=PAGE_TOKENS, token_bytes=64),
            "num_layers": 2,
            "first_layer": 0,
            "total_heads": 2,
            "cell_heads": 1,
            "block_tokens": BLOCK_TOKENS,
            "step_tokens": 2048,
            "engine_id": "engine",
        }
        return Deployment(**(fields | changes))

    return make


@pytest.fixture
def make_request(make_deployment):
    """Return a function that makes a request of some tokens, counted up from 0."""
    return lambda name, num_tokens: PlainRequest(name, range(num_tokens), make_deployment())
