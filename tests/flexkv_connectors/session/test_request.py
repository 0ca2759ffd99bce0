"""What a request has to load and to save."""

import pytest


def test_its_keys_grow_with_its_tokens(make_request):
    request = make_request("r", 20)
    before = list(request.keys())
    request.tokens += range(4)
    assert (len(before), len(request.keys())) == (2, 3)
    assert request.keys()[:2] == before


def test_one_token_is_left_to_compute_and_its_page_with_it(make_request):
    assert [make_request("r", n).max_usable_tokens for n in (16, 17, 20, 21)] == [12, 16, 16, 20]


def test_a_token_that_no_key_can_be_made_of_costs_it_the_cache(make_request, caplog):
    request = make_request("r", 16)
    request.keys()
    request.tokens += [-1] * 8
    for _ in range(2):
        assert len(request.keys()) == 2
    assert (request.may_load, request.may_save) == (False, False)
    assert caplog.text.count("request.not_cached id=r") == 1


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([7, 8, 9, 5, 6], [8, 9]),
        ([7, 8, 9], [8, 9]),
        ([7, 8, -1, 9], [8]),
        ([7], []),
        ([-1] * 5, []),
    ],
)
def test_the_pages_of_an_offer_end_where_one_is_not_there(make_request, pages, expected):
    request = make_request("r", 20)
    request.offer, request.page_ids = range(4, 12), pages
    assert request.offered_pages() == expected


@pytest.mark.parametrize(
    ("num_computed", "num_blocks"), [(-3, 0), (0, 0), (7, 0), (8, 1), (23, 2), (24, 3), (99, 3)]
)
def test_full_blocks_of_computed_tokens_can_be_saved(make_request, num_computed, num_blocks):
    request = make_request("r", 25)
    request.page_ids = list(range(7))
    assert request.num_savable_blocks(num_computed) == num_blocks


@pytest.mark.parametrize("num_tried_blocks", [0, 1])
def test_blocks_from_a_page_on_that_is_not_there_cannot_be_saved(make_request, num_tried_blocks):
    request = make_request("r", 25)
    request.page_ids = [1, 2, 3, -1, 5, 6]
    request.note_tried(num_tried_blocks)
    assert request.num_savable_blocks(24) == 1


def test_a_request_that_is_not_to_be_saved_has_nothing_to_save(make_request):
    request = make_request("r", 25)
    request.page_ids, request.may_save = list(range(6)), False
    assert request.num_savable_blocks(24) == 0
    for num_tried in range(2):
        assert request.next_save_tokens > 1 << 40, "an engine would ask about it in every step"
        request.note_tried(num_tried)


@pytest.mark.parametrize("num_draft_blocks", [0, 1])
def test_the_next_save_is_due_exactly_when_another_block_can_be_saved(
    make_request, num_draft_blocks, monkeypatch
):
    request = make_request("r", 99)
    monkeypatch.setattr(type(request), "num_draft_blocks", num_draft_blocks)
    request.page_ids = list(range(25))
    for num_tried in range(4):
        request.note_tried(num_tried)
        due = [n for n in range(99) if n >= request.next_save_tokens]
        assert due == [n for n in range(99) if request.num_savable_blocks(n) > num_tried]
