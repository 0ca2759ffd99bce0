"""What a rank says of its share of the SSD tier."""

from types import SimpleNamespace

import pytest

from flexkv_connectors.common.ssd_share import SsdShare
from flexkv_core.config import parse_config
from flexkv_core.layout import BlockFormat, Column
from flexkv_core.plan import TierOrders
from flexkv_core.testing.namespaces import make_namespace
from flexkv_core.tiers.host import HostPool
from flexkv_core.tiers.ssd.tier import SsdTier


@pytest.fixture
def new_share(tmp_path):
    """A share that has told nothing."""
    block_format = BlockFormat(
        num_heads=1, num_layers=1, block_tokens=16, token_bytes=256, cell_heads=1
    )
    pool = HostPool.create(4, block_format.block_bytes)
    deployment = SimpleNamespace(
        cache=parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}),
        rank=0,
        columns=[Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)],
        block_format=block_format,
        engine_id="engine",
    )
    share = SsdShare(deployment, make_namespace(), pool, 1 << 30)
    share._tier.wait_recovered()
    yield share
    for lane in share.lanes.values():
        lane.close()
    share.close()
    pool.close()


@pytest.fixture
def share(new_share):
    """A share that has told all that there was."""
    assert new_share.take_report().is_recovered
    return new_share


def test_nothing_is_said_twice(share):
    assert share.take_report() is None


def test_room_that_comes_or_goes_is_told_although_nothing_was_moved(share, monkeypatch):
    """Where there was none, nothing will be moved until it is known that there is some again."""
    for capacity_blocks in (0, 7):
        monkeypatch.setattr(SsdTier, "capacity_blocks", capacity_blocks)
        assert share.take_report().capacity_blocks == capacity_blocks
        assert share.take_report() is None


def test_a_search_that_finds_nothing_for_long_says_nothing(new_share, monkeypatch):
    """An idle engine is kept stepping while reports come: a stuck disk would keep it for ever."""
    monkeypatch.setattr(SsdTier, "is_recovered", False)
    assert not new_share.take_report().is_recovered
    assert new_share.take_report() is None


def test_the_end_of_the_search_is_told(share, monkeypatch):
    for is_recovered in (False, True):
        monkeypatch.setattr(SsdTier, "is_recovered", is_recovered)
        assert share.take_report().is_recovered is is_recovered


def test_a_generation_that_was_begun_is_told_once(share):
    """The scheduler half uses the tier no more until it hears so."""
    share.prepare(TierOrders(generation="g"))
    share._tier.wait_recovered()
    told = share.take_report()
    assert (told.generation, told.is_recovered, told.recovered) == ("g", True, [])
    assert share.take_report() is None


def test_before_any_reset_reports_are_of_no_generation(new_share):
    assert new_share.take_report().generation == ""
