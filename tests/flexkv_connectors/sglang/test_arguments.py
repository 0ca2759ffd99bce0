"""What SGLang passes in a call."""

import torch

from flexkv_connectors.sglang.arguments import keys_of, page_ids_of


def test_keys_are_what_hex_spells():
    assert keys_of(["00" * 32, "0f" * 32]) == [bytes(32), b"\x0f" * 32]


def test_pages_begin_where_their_first_index_says():
    indices = torch.cat([torch.arange(32, 48), torch.arange(16)])
    assert page_ids_of(indices, 16, 2) == [2, 0]
    assert page_ids_of(torch.tensor([7, 3]), 1, 2) == [7, 3]
    assert page_ids_of(torch.tensor([], dtype=torch.int64), 16, 0) == []


def test_indices_that_are_not_a_whole_page_for_each_key_name_none():
    whole = torch.arange(32)
    assert page_ids_of(whole, 16, 2) == [0, 1]
    assert page_ids_of(whole[:-1], 16, 2) is None
    assert page_ids_of(whole, 16, 1) is None
    assert page_ids_of(whole + 1, 16, 2) is None
    assert page_ids_of(None, 16, 2) is None
