"""Our events beside vLLM's own of the same request: the same names, tokens and extra keys."""

import dataclasses
from types import SimpleNamespace

import pytest
from half_rig import (
    BLOCK_TOKENS,
    NUM_TOKENS,
    PAGE_TOKENS,
    PROMPT,
    compute,
    deployment_in,
    ready_half_of,
    request_of,
    saved,
)
from vllm.lora.request import LoRARequest

from flexkv_core.metrics import Counters

NUM_PAGES = NUM_TOKENS // PAGE_TOKENS
LORA = LoRARequest("tuned", 7, "/adapters/tuned")
REQUESTS = {
    "plain": {},
    "salted": {"salt": "of somebody"},
    "with an adapter": {"lora": LORA},
    "with media": {"media": (20, 100)},
    "with all": {"salt": "of somebody", "lora": LORA, "media": (0, 70)},
}


class ReadAdapters:
    """Adapters whose files have been read: nothing here is about how."""

    is_only = True
    has_work = False

    def begin(self, lora):
        return SimpleNamespace(digest=lora.lora_path.encode().ljust(32))

    def holds(self, adapter):
        return True

    def is_only_one(self, adapter):
        return self.is_only

    def look_again(self):
        """Do nothing: they do not change."""


@pytest.fixture
def adapters():
    return ReadAdapters()


@pytest.fixture
def counters():
    return Counters()


@pytest.fixture
def half(tmp_path, adapters, counters):
    deployment = dataclasses.replace(deployment_in(tmp_path), publishes_events=True)
    return ready_half_of(deployment, adapters, counters)


def said_by_vllm(request):
    """Return what vLLM's own block pool tells when it has cached all pages of a request."""
    from vllm.v1.core.block_pool import BlockPool

    pool = BlockPool(
        64, enable_caching=True, hash_block_size=PAGE_TOKENS, enable_kv_cache_events=True
    )
    pages = pool.get_new_blocks(NUM_PAGES)
    pool.cache_full_blocks(
        request=request,
        blocks=pages,
        num_cached_blocks=0,
        num_full_blocks=NUM_PAGES,
        block_size=PAGE_TOKENS,
        kv_cache_group_id=0,
    )
    [event] = pool.take_events()
    return event


@pytest.mark.parametrize("kind", REQUESTS)
def test_pages_are_told_as_vllm_tells_those_on_its_device(half, kind):
    request = request_of(**REQUESTS[kind])
    half.match(request, 0)
    saved(half, compute(half, request))
    [ours] = half.take_events()
    theirs = said_by_vllm(request)
    for name in ("block_hashes", "parent_block_hash", "token_ids", "block_size"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.lora_id, ours.lora_name) == (theirs.lora_id, theirs.lora_name)
    assert (ours.extra_keys or [None] * NUM_PAGES) == theirs.extra_keys
    assert ours.medium == "CPU"


def test_later_blocks_name_the_page_before_them(half):
    request = request_of()
    half.match(request, 0)
    saved(half, compute(half, request, end=BLOCK_TOKENS))
    saved(half, compute(half, request, BLOCK_TOKENS))
    first, rest = half.take_events()
    assert rest.parent_block_hash == first.block_hashes[-1]
    assert rest.token_ids == PROMPT[BLOCK_TOKENS:]


def test_a_namespace_of_the_caller_is_in_no_name_of_vllms_so_nothing_is_told(half, counters):
    request = request_of(params={"flexkv": {"namespace": "mine"}})
    half.match(request, 0)
    saved(half, compute(half, request))
    assert [*half.take_events()] == []
    assert counters.drain()["events_unsaid_blocks"] == NUM_TOKENS // BLOCK_TOKENS


def test_an_adapter_that_has_changed_under_its_name_is_not_told(half, adapters, counters):
    """Routers would believe the blocks of the old one to be those of the new one."""
    request = request_of(lora=LORA)
    half.match(request, 0)
    adapters.is_only = False
    saved(half, compute(half, request))
    assert [*half.take_events()] == []
    assert counters.drain()["events_unsaid_blocks"] == NUM_TOKENS // BLOCK_TOKENS


def test_where_nobody_listens_nothing_is_kept(tmp_path, adapters):
    half = ready_half_of(deployment_in(tmp_path), adapters)
    request = request_of()
    half.match(request, 0)
    saved(half, compute(half, request))
    assert half.take_events() == ()
