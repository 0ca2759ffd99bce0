"""Namespaces, columns, host memory and tiers for the tests of the SSD tier."""

import msgspec
import pytest

from flexkv_core.layout import Column
from flexkv_core.namespace import Namespace
from flexkv_core.tiers.base import TierBlock
from flexkv_core.tiers.host import HostPool
from flexkv_core.tiers.ssd.options import SsdOptions
from flexkv_core.tiers.ssd.tier import SsdTier

CELL_BYTES = 8192
SLOT_BYTES = 4096 + CELL_BYTES
NUM_HOST_SLOTS = 16


@pytest.fixture
def namespace():
    return Namespace(
        model="model",
        weight_version="",
        weight_quantization="",
        kv_cache_dtype="bfloat16",
        kv_scales="",
        overrides="",
        num_layers=4,
        num_kv_heads=2,
        key_head_size=64,
        value_head_size=64,
        draft_model="",
        num_draft_layers=0,
        block_tokens=16,
        block_format="cells",
        block_format_version=1,
        cell_heads=1,
        cell_layers=4,
        user="",
    )


@pytest.fixture
def columns():
    """Return two columns: the heads of a model that two ranks may share."""
    return [
        Column(first_head=head, num_heads=1, first_layer=0, num_layers=4) for head in range(2)
    ]
