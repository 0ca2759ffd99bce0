"""Which of vLLM's own pages are old, and from when on none are."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.vllm.old_pages import OldPages


@pytest.fixture
def pool():
    """Return vLLM's pool with a page that can be hit."""
    return SimpleNamespace(cached_block_hash_to_block={"hash": "page"}, get_usage=lambda: 0.0)


@pytest.fixture
def pages(pool):
    """Return what follows the pool."""
    pages = OldPages()
    pages.follow(pool)
    return pages


def test_before_a_reset_none_is_old(pages):
    assert not pages.may_be_hit


def test_what_a_reset_leaves_is_old(pages):
    pages.note_reset()
    assert pages.may_be_hit


def test_what_is_being_filled_during_a_reset_is_old_once_it_can_be_hit(pages, pool):
    pool.cached_block_hash_to_block.clear()
    pool.get_usage = lambda: 0.1
    pages.note_reset()
    pool.cached_block_hash_to_block["hash"] = "page"
    assert pages.may_be_hit


def test_a_reset_that_leaves_none_makes_none_old_later(pages, pool):
    pool.cached_block_hash_to_block.clear()
    pages.note_reset()
    pool.cached_block_hash_to_block["hash"] = "page"
    assert not pages.may_be_hit


def test_once_vllm_has_dropped_its_pages_none_is_old(pages, pool):
    pages.note_reset()
    pool.cached_block_hash_to_block = {}
    assert not pages.may_be_hit


def test_where_no_pool_is_known_none_is_old():
    pages = OldPages()
    pages.note_reset()
    assert not pages.may_be_hit
