"""What SGLang passes in a call."""

import torch

from flexkv_connectors.sglang.calls import keys_of, page_ids_of


def test_keys_are_what_hex_spells():
    assert keys_of(["00" * 32, "0f" * 32]) == [bytes(32), b"\x0f" * 32]


def test_pages_begin_where_their_first_index_says():
    indices = torch.cat([torch.arange(32, 48), torch.arange(16)])
    assert page_ids_of(indices, 16) == [2, 0]
    assert page_ids_of(torch.tensor([7, 3]), 1) == [7, 3]
    assert page_ids_of(torch.tensor([], dtype=torch.int64), 16) == []
