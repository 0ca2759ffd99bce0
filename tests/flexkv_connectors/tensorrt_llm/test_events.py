"""What can be said of a request, and what its pages are called."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.announcer import PageKind
from flexkv_connectors.tensorrt_llm.events import PageNames, kind_of
from flexkv_core.block.keys import KeyChain
from flexkv_core.event_options import EventOptions

ARRAY = EventOptions(endpoint="tcp://*:1", format="array")
MAP = EventOptions(endpoint="tcp://*:1", format="map")
KIND = PageKind(page_tokens=4)
TOKENS = list(range(100, 132))


@pytest.mark.parametrize(
    ("asked", "as_array", "as_map"),
    [
        ({}, KIND, KIND),
        ({"cache_salt": None, "cache_salt_id": None, "lora_task_id": None}, KIND, KIND),
        ({"cache_salt": "s"}, None, PageKind(4, cache_salt="s")),
        ({"cache_salt": ""}, None, PageKind(4, cache_salt="")),
        ({"cache_salt": "s", "cache_salt_id": 7}, None, PageKind(4, cache_salt="s")),
        ({"cache_salt_id": 0}, None, None),
        ({"cache_salt": "\udcff"}, None, None),
        ({"lora_task_id": 0}, None, None),
        ({"lora_task_id": 7, "cache_salt": "s"}, None, None),
    ],
)
def test_what_routers_cannot_tell_apart_is_not_said(asked, as_array, as_map):
    request = SimpleNamespace(**asked)
    assert kind_of(request, 4, ARRAY) == as_array
    assert kind_of(request, 4, MAP) == as_map


def names(tokens=TOKENS, seed=None, blocks=None):
    """Return the pages of blocks of two pages each."""
    pages = PageNames(KeyChain(4, seed), KIND, pages_per_block=2)
    return pages.pages_of(tokens, blocks or range(len(tokens) // 8))


def test_pages_follow_one_another_with_their_tokens():
    said = names()
    assert [pages.parent for pages in said] == [None, *(pages.names[-1] for pages in said[:-1])]
    assert [pages.token_ids for pages in said] == [
        list(TOKENS[start : start + 8]) for start in range(0, 32, 8)
    ]


def test_a_name_is_the_beginning_of_the_key_of_a_page():
    chain = KeyChain(4)
    chain.advance(TOKENS)
    expected = [int.from_bytes(key[:8], "big") for key in chain.keys]
    assert [name for pages in names() for name in pages.names] == expected


def test_blocks_asked_about_later_have_the_names_that_they_would_have_had_before():
    pages = PageNames(KeyChain(4), KIND, pages_per_block=2)
    assert [*pages.pages_of(TOKENS[:16], range(2)), *pages.pages_of(TOKENS, range(2, 4))] == names()
    assert pages.pages_of(TOKENS[:16], range(1, 2)) == names()[1:2]


def test_other_seeds_give_other_names():
    plain, salted = (
        {name for pages in said for name in pages.names}
        for said in (names(), names(seed=b"s" * 32))
    )
    assert not plain & salted


@pytest.mark.parametrize("key", [bytes(32), b"\0\0\0\0" + b"\xff" * 28, b"\0\0\0\1" + bytes(28)])
def test_a_name_always_takes_eight_bytes_and_is_never_none(key):
    chain = KeyChain(4)
    chain.keys += [key, b"\xff" * 32]
    [pages] = PageNames(chain, KIND, pages_per_block=2).pages_of(TOKENS[:8], range(1))
    assert pages.names == (2**32, 2**64 - 1)
