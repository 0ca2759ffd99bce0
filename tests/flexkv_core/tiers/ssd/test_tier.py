"""The SSD tier as its users see it."""

import pytest

from flexkv_core.testing.tier_contract import TierCase, TierContract
from flexkv_core.tiers.ssd.options import SsdOptions
from flexkv_core.tiers.ssd.tier import SsdTier


class SsdCase(TierCase):
    def __init__(self, path, namespace, columns):
        self.path, self.namespace, self.columns = path, namespace, columns

    def open(self, region, block_bytes):
        options = SsdOptions(directories=(self.path,), quota_bytes=1 << 20)
        cell_bytes = block_bytes // len(self.columns)
        tier = SsdTier(region, self.namespace, self.columns, cell_bytes, options, "engine")
        tier.wait_recovered()
        return tier

    def corrupt(self, key):
        slabs = list(self.path.glob("*/*/*.slab"))
        slab = slabs[-1]
        content = bytearray(slab.read_bytes())
        header = content.index(key, 4096)
        content[header - 40 + 4096 + 100] ^= 1
        slab.write_bytes(content)


class TestOneColumn(TierContract):
    @pytest.fixture
    def case(self, tmp_path, namespace, columns):
        return SsdCase(tmp_path, namespace, columns[:1])


class TestTwoColumns(TierContract):
    @pytest.fixture
    def case(self, tmp_path, namespace, columns):
        return SsdCase(tmp_path, namespace, columns)
