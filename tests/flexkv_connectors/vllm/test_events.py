"""What vLLM publishes of our tiers: one event of its own for each announcement.

That names and extra keys are those of vLLM's own events is shown on real requests of it.
"""

import sys
from types import SimpleNamespace

import pytest

from flexkv_connectors.announcer import BlockPages, PageKind, PagesRemoved, PagesStored, pack_tokens
from flexkv_connectors.vllm.events import events_of

PLAIN = PageKind(page_tokens=2)


def block(number, kind=PLAIN, extra_keys=None):
    """Return a block of two pages in a chain of them."""
    tokens = pack_tokens(range(4 * number, 4 * number + 4))
    names = (2 * number + 1, 2 * number + 2)
    return BlockPages(names, 2 * number or None, tokens, kind, extra_keys)


@pytest.fixture(autouse=True)
def kv_events(monkeypatch):
    """What events are made of, without vLLM."""
    made = SimpleNamespace(BlockStored=SimpleNamespace, BlockRemoved=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.distributed", SimpleNamespace(kv_events=made))


def one(announcement):
    [event] = events_of([announcement])
    return event


def test_blocks_are_said_in_pages_with_their_tokens_and_parent():
    event = one(PagesStored("host", [block(1), block(2)]))
    assert event.block_hashes == [3, 4, 5, 6]
    assert event.parent_block_hash == 2
    assert event.token_ids == list(range(4, 12))
    assert (event.block_size, event.medium) == (2, "CPU")
    assert (event.lora_id, event.lora_name, event.extra_keys, event.group_idx) == (None,) * 4


def test_the_first_block_has_no_parent():
    assert one(PagesStored("ssd", [block(0)])).parent_block_hash is None


def test_an_adapter_is_named():
    event = one(PagesStored("host", [block(0, PageKind(2, lora_id=7, lora_name="tuned"))]))
    assert (event.lora_id, event.lora_name) == (7, "tuned")


def test_what_else_enters_names_is_said_for_each_page():
    event = one(PagesStored("host", [block(0, extra_keys=(("salt",), None)), block(1)]))
    assert event.extra_keys == [("salt",), None, None, None]


def test_a_group_is_said_where_there_are_several():
    kind = PageKind(page_tokens=2, group=(1, "full_attention", None))
    stored = one(PagesStored("host", [block(0, kind)]))
    assert (stored.group_idx, stored.kv_cache_spec_kind) == (1, "full_attention")
    assert one(PagesRemoved("host", [block(0, kind)])).group_idx == 1


def test_removals_name_pages_and_tier():
    event = one(PagesRemoved("ssd", [block(0), block(4)]))
    assert (event.block_hashes, event.medium, event.group_idx) == ([1, 2, 9, 10], "STORAGE", None)
