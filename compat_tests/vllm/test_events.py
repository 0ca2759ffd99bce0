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

from flexkv_connectors.announcer import Announcer, BlockPages, PageKind, pack_tokens
from flexkv_connectors.fault_barrier import FaultBarrier
from flexkv_connectors.vllm.events import kind_of, pages_of
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


def test_what_vllm_has_not_named_is_not_told(half, counters):
    request = request_of()
    half.match(request, 0)
    del request.block_hashes[-1:]
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


class Publishing:
    """A rig below vLLM's offloading, and what is told of its SSD tier."""

    def __init__(self, rig, key_of):
        self.rig, self.key_of = rig, key_of
        self.announcer = rig.engine.announcer
        rig.begin("writer")

    def save(self, numbers):
        keys = [self.key_of(number) for number in numbers]
        self.announcer.expect(keys, [pages_called(number) for number in numbers])
        self.rig.save("writer", dict(zip(keys, numbers, strict=True)))
        self.rig.settle()

    def told(self):
        """Return names by kind; what is told of host memory comes from vLLM, not from the tier."""
        names = {"PagesStored": [], "PagesRemoved": []}
        for said in self.announcer.take():
            assert said.tier == "ssd"
            names[type(said).__name__] += [pages.names[0] for pages in said.blocks]
        return names


def pages_called(name):
    return BlockPages((name,), None, pack_tokens([name]), PageKind(1))


@pytest.fixture
def publishing(offload, config_of, tmp_path):
    """Return the rig of an engine that publishes events, with room for few rows on SSD."""
    from vllm.config import KVEventsConfig

    events = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    rig = offload.OffloadRig(
        config_of(kv_events_config=events), tmp_path / "ssd", ssd_cache_gb=0.004
    ).open()
    yield Publishing(rig, offload.key_of)
    rig.close()


def test_below_vllms_offloading_rows_are_told_when_they_are_on_ssd_and_when_they_leave(publishing):
    publishing.save(range(1, 5))
    assert publishing.told() == {"PagesStored": [1, 2, 3, 4], "PagesRemoved": []}
    stored, removed = [], []
    for first in range(5, 245, 8):
        publishing.rig.forget_rows()
        publishing.save(range(first, first + 8))
        told = publishing.told()
        stored += told["PagesStored"]
        removed += told["PagesRemoved"]
    assert stored == list(range(5, 245))
    assert removed[:4] == [1, 2, 3, 4]


def test_below_vllms_offloading_a_reset_takes_each_row_back(publishing):
    publishing.save(range(1, 5))
    publishing.told()
    publishing.rig.manager.reset_cache()
    assert sorted(publishing.told()["PagesRemoved"]) == [1, 2, 3, 4]


def test_a_token_that_no_router_could_read_is_not_told():
    """It would lose them the whole batch, with what vLLM tells of its device."""
    request = request_of()
    kind = kind_of(request, PAGE_TOKENS)
    assert pages_of(request, kind, range(PAGE_TOKENS), PAGE_TOKENS) is not None
    request._all_token_ids[1] = 2**32
    assert pages_of(request, kind, range(PAGE_TOKENS), PAGE_TOKENS) is None


class FakeManager:
    """What vLLM's host tier has not told yet."""

    def __init__(self):
        self.events = []

    def take_events(self):
        yield from self.events
        self.events.clear()


GROUP = SimpleNamespace(
    group_idx=0,
    kv_event_group_spec=("full_attention", None),
    sliding_window_size_in_chunks=None,
    tokens_per_block=PAGE_TOKENS,
    tokens_per_chunk=BLOCK_TOKENS,
    hashes_per_chunk=BLOCK_TOKENS // PAGE_TOKENS,
)
"""One of full attention, as vLLM's offloading describes it."""


def tracker_of(manager):
    from flexkv_connectors.vllm.offloading.events import EventsTracker

    return EventsTracker.of(Announcer(), Counters(), FaultBarrier(), manager)


def stored_event(*keys):
    return SimpleNamespace(keys=keys, removed=False)


def test_below_vllms_offloading_what_was_stored_just_before_a_reset_is_not_told_after_it():
    manager = FakeManager()
    tracker = tracker_of(manager)
    tracker.record_store(request_of(), GROUP, 0, b"a key")
    manager.events.append(stored_event(b"a key"))
    tracker.reset()
    assert tracker.take_events(manager.take_events()) == []
    assert not tracker.barrier.reason


def test_below_vllms_offloading_a_lookup_describes_no_block_that_is_told_already():
    """A request that waits is looked up in each step, from its first block on."""
    tracker, request = tracker_of(FakeManager()), request_of()
    tracker.record_lookup(request, GROUP, 0, b"a key")
    [told] = tracker.take_events([])
    assert told.token_ids == PROMPT[:BLOCK_TOKENS]
    tracker.record_lookup(None, GROUP, 0, b"a key")  # no request, no tokens
    assert tracker.take_events([]) == []
    assert not tracker.barrier.reason


def test_below_vllms_offloading_pages_are_told_as_vllm_tells_those_on_its_device():
    request = request_of(salt="of somebody", media=(20, 100))
    tracker, theirs = tracker_of(FakeManager()), said_by_vllm(request)
    tracker.record_store(request, GROUP, 1, b"a key")
    [ours] = tracker.take_events([stored_event(b"a key")])
    num_pages = BLOCK_TOKENS // PAGE_TOKENS
    assert ours.block_hashes == theirs.block_hashes[num_pages : 2 * num_pages]
    assert ours.parent_block_hash == theirs.block_hashes[num_pages - 1]
    assert ours.extra_keys == theirs.extra_keys[num_pages : 2 * num_pages]
    assert (ours.group_idx, ours.kv_cache_spec_kind) == (0, "full_attention")


@pytest.mark.parametrize("window", [1, None])
def test_below_vllms_offloading_what_a_window_keeps_is_counted_and_not_told(window):
    tracker = tracker_of(FakeManager())
    group = SimpleNamespace(**vars(GROUP) | {"sliding_window_size_in_chunks": window})
    tracker.record_store(request_of(), group, 0, b"a key")
    tracker.record_lookup(request_of(), group, 0, b"a key")
    assert len(tracker.take_events([])) == (window is None)
    assert tracker.recorder.drain().get("events_unsaid_blocks", 0) == (window is not None)


def test_below_vllms_offloading_the_rest_of_a_state_is_counted_and_not_told():
    tracker = tracker_of(FakeManager())
    tracker.record_partial_store(request_of(), GROUP, PAGE_TOKENS, b"a key")
    assert tracker.take_events([stored_event(b"a key")]) == []
    assert tracker.recorder.drain()["events_unsaid_blocks"] == 1


def test_below_vllms_offloading_a_cache_that_has_failed_takes_back_what_was_told():
    tracker = tracker_of(FakeManager())
    tracker.record_store(request_of(), GROUP, 0, b"a key")
    [told] = tracker.take_events([stored_event(b"a key")])
    tracker.barrier.switch_off("of a test")
    [taken_back] = tracker.take_events([])
    assert taken_back.block_hashes == told.block_hashes
    assert tracker.take_events([]) == []


def test_a_failure_to_tell_costs_the_cache_and_not_the_engine():
    from flexkv_connectors.vllm.offloading.events import EventsTracker

    barrier = FaultBarrier()
    tracker = EventsTracker.of(Announcer(), Counters(), barrier, FakeManager())
    tracker.record_store(request_of(), None, 0, b"a key")
    assert "AttributeError" in barrier.reason
    assert tracker.take_events([]) == []
