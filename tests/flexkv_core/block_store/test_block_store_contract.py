"""Block stores of both kinds, both accesses and over both lanes keep the contract."""

import pytest
from store_case import StoreCase

from flexkv_core.block_store.blocks import Access
from flexkv_core.testing.block_store_contract import BlockStoreContract


@pytest.mark.parametrize("access", Access, ids=lambda access: access.value)
@pytest.mark.parametrize("is_staged", [True, False], ids=["staged", "direct"])
class TestWriter(BlockStoreContract):
    @pytest.fixture
    def case(self, tmp_path, access, is_staged):
        return StoreCase(tmp_path, access=access, is_staged=is_staged, is_writer=True)


@pytest.mark.parametrize("access", Access, ids=lambda access: access.value)
@pytest.mark.parametrize("is_staged", [True, False], ids=["staged", "direct"])
class TestFollower(BlockStoreContract):
    @pytest.fixture
    def case(self, tmp_path, access, is_staged):
        return StoreCase(tmp_path, access=access, is_staged=is_staged, is_writer=False)
