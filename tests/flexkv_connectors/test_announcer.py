"""What is told of blocks that come and go, in memory that their number bounds."""

import pytest

from flexkv_connectors import announcer as module
from flexkv_connectors.announcer import (
    Announcer,
    BlockPages,
    PageKind,
    PagesRemoved,
    PagesStored,
    pack_tokens,
)
from flexkv_core.block.types import BlockKey
from flexkv_core.events import BlocksRemoved, BlocksStored, CacheCleared

KIND = PageKind(page_tokens=2)
KEYS = [BlockKey(bytes([number]) * 32) for number in range(6)]


def block(number, kind=KIND):
    """Return a block of two pages in a chain of them."""
    names = (2 * number + 1, 2 * number + 2)
    return BlockPages(
        names, 2 * number or None, pack_tokens(range(4 * number, 4 * number + 4)), kind
    )


PAGES = [block(number) for number in range(6)]


@pytest.fixture
def announcer():
    return Announcer()


def store(announcer, tier="host", first=0, last=6):
    announcer.log.append(BlocksStored(tier, KEYS[first:last]))


def test_a_run_of_blocks_is_one_announcement(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    assert announcer.take() == [PagesStored("host", PAGES)]
    assert announcer.take() == []


def test_blocks_that_do_not_follow_one_another_are_told_apart(announcer):
    announcer.expect(KEYS[:2] + KEYS[3:], PAGES[:2] + PAGES[3:])
    store(announcer)
    assert announcer.take() == [PagesStored("host", PAGES[:2]), PagesStored("host", PAGES[3:])]


def test_blocks_of_another_kind_are_told_apart(announcer):
    other = block(1, PageKind(page_tokens=2, lora_id=1, lora_name="a"))
    announcer.expect(KEYS[:2], [PAGES[0], other])
    store(announcer, last=2)
    assert announcer.take() == [PagesStored("host", PAGES[:1]), PagesStored("host", [other])]


def test_a_block_has_the_same_names_in_every_tier(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    store(announcer, "ssd")
    assert announcer.take() == [PagesStored("host", PAGES), PagesStored("ssd", PAGES)]


def test_what_leaves_one_tier_stays_in_the_other(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    store(announcer, "ssd")
    announcer.take()
    announcer.log.append(BlocksRemoved("host", KEYS[4:]))
    store(announcer, first=4)
    assert announcer.take() == [PagesRemoved("host", PAGES[4:]), PagesStored("host", PAGES[4:])]


def test_what_was_never_announced_is_not_taken_back(announcer):
    store(announcer)
    announcer.log.append(BlocksRemoved("host", KEYS))
    assert announcer.take() == []


def test_nothing_is_announced_twice(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    announcer.take()
    announcer.expect(KEYS, PAGES)
    store(announcer)
    assert announcer.take() == []
    assert not announcer._expected


def test_when_all_is_lost_each_block_is_taken_back(announcer):
    """One event that clears everything would take what the engine has on its device, too."""
    announcer.expect(KEYS, PAGES)
    store(announcer)
    store(announcer, "ssd", last=2)
    announcer.log.append(CacheCleared())
    said = announcer.take()
    assert said[2:] == [PagesRemoved("host", PAGES), PagesRemoved("ssd", PAGES[:2])]
    store(announcer)
    assert announcer.take() == []


def test_what_was_there_before_is_announced_when_its_tokens_come(announcer):
    asked = []

    def describe(blocks):
        asked.append(blocks)
        return PAGES[blocks.start : blocks.stop]

    store(announcer, "ssd")
    assert announcer.take() == []
    announcer.find("ssd", KEYS[:4], describe)
    assert announcer.take() == [PagesStored("ssd", PAGES[:4])]
    announcer.find("ssd", KEYS, describe)
    assert announcer.take() == [PagesStored("ssd", PAGES[4:])]
    announcer.find("ssd", KEYS, describe)
    assert asked == [range(4), range(4, 6)]


def test_what_was_found_and_has_no_name_is_not_announced(announcer):
    announcer.find("ssd", KEYS, lambda _: [])
    assert announcer.take() == []


def test_what_was_found_and_left_before_it_was_told_is_not_there_in_the_end(announcer):
    announcer.find("ssd", KEYS, lambda _: PAGES)
    announcer.log.append(BlocksRemoved("ssd", KEYS))
    assert announcer.take() == [PagesStored("ssd", PAGES), PagesRemoved("ssd", PAGES)]


def test_when_routers_have_forgotten_all_it_is_announced_anew(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    announcer.take()
    announcer.forget()
    announcer.log.append(BlocksRemoved("host", KEYS[5:]))
    announcer.find("host", KEYS[:5], lambda _: PAGES[:5])
    assert announcer.take() == [PagesStored("host", PAGES[:5])]


def test_what_is_being_saved_when_routers_forget_would_follow_what_they_do_not_know(announcer):
    announcer.expect(KEYS, PAGES)
    announcer.forget()
    store(announcer)
    assert announcer.take() == []


def test_what_came_and_left_before_routers_forgot_is_not_told_when_it_is_saved_again(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    announcer.log.append(BlocksRemoved("host", KEYS))
    announcer.forget()
    announcer.expect(KEYS, PAGES)
    assert announcer.take() == []


def test_nothing_is_kept_of_blocks_that_have_left(announcer):
    announcer.expect(KEYS, PAGES)
    store(announcer)
    store(announcer, "ssd")
    announcer.log.append(BlocksRemoved("host", KEYS))
    announcer.log.append(BlocksRemoved("ssd", KEYS))
    announcer.take()
    assert not any(tier.blocks or tier._alike for tier in announcer._tiers.values())


@pytest.mark.parametrize("first_to_go", [0, 1])
def test_pages_that_two_blocks_have_in_common_are_told_once_and_go_with_the_last(
    announcer, first_to_go
):
    """As where a prompt parts from another within a block."""
    one = block(0)
    other = BlockPages((1, 9), None, pack_tokens([0, 1, 8, 9]), KIND, (None, ("picture",)))
    rest = BlockPages((9,), 1, pack_tokens([8, 9]), KIND, (("picture",),))
    announcer.expect(KEYS[:2], [one, other])
    store(announcer, last=1)
    store(announcer, first=1, last=2)
    assert announcer.take() == [PagesStored("host", [one]), PagesStored("host", [rest])]
    for at in (first_to_go, 1 - first_to_go):
        announcer.log.append(BlocksRemoved("host", [KEYS[at]]))
    names = [[page for pages in said.blocks for page in pages.names] for said in announcer.take()]
    assert names == ([[2], [1, 9]] if first_to_go == 0 else [[9], [1, 2]])


def test_blocks_of_two_cache_groups_are_each_told_under_the_same_names(announcer):
    first, second = (PageKind(2, group=(number, "full", None)) for number in range(2))
    pages = [block(0, first), block(0, second), block(1, first), block(1, second)]
    announcer.expect(KEYS[:4], pages)
    store(announcer, last=4)
    assert announcer.take() == [PagesStored("host", [block]) for block in pages]
    announcer.log.append(BlocksRemoved("host", KEYS[:4]))
    assert announcer.take() == [PagesRemoved("host", pages[at::2]) for at in range(2)]


def test_saves_that_come_to_nothing_are_bounded(announcer, monkeypatch):
    monkeypatch.setattr(module, "_MAX_EXPECTED_BLOCKS", 4)
    announcer.expect(KEYS, PAGES)
    store(announcer)
    assert announcer.take() == [PagesStored("host", PAGES[2:])]
