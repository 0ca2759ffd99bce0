"""What a store is asked for, as chains."""

import pytest

from flexkv_core.block_store.blocks import Access, Blocks
from flexkv_core.errors import LayoutError

BLOCKS = Blocks([b"c", b"d"], [7, 5], before=[b"a", b"b"])


def test_blocks_of_a_chain_lie_behind_all_before_them():
    (chain,) = Access.CHAIN.chains_of(BLOCKS)
    assert chain == ([b"a", b"b", b"c", b"d"], [7, 5])
    assert chain.first_block == 2


def test_a_part_of_a_chain_has_the_pages_for_its_blocks():
    (chain,) = Access.CHAIN.chains_of(BLOCKS)
    assert chain.part(1, 3) == ([b"b", b"c"], [7])
    assert chain.part(3, 4) == ([b"d"], [5])
    assert chain.part(0, 2) == ([b"a", b"b"], [])


def test_blocks_that_stand_alone_are_a_chain_each():
    chains = Access.SINGLE.chains_of(BLOCKS)
    assert chains == [([b"c"], [7]), ([b"d"], [5])]
    assert [chain.first_block for chain in chains] == [0, 0]


def test_keys_without_a_page_are_refused():
    with pytest.raises(LayoutError, match="1 pages for 2 keys"):
        Blocks([b"c", b"d"], [7])
