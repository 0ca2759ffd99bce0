"""Staging takes what is asked for, or at most a quarter of what is free, and never nothing."""

import importlib.util

import pytest

from flexkv_core.errors import ConfigError

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="needs torch and triton (`make setup-engine`)",
)


@pytest.mark.parametrize(
    ("block_mib", "free_mib", "places"),
    [
        (8, 4096, (32, 8)),
        (1, 4096, (256, 64)),
        (8, 320, (8, 2)),
        (100, 4096, (2, 1)),
        (300, 4096, (1, 1)),
        (8, 64, (1, 1)),
    ],
)
def test_staging_is_divided_in_whole_blocks(block_mib, free_mib, places):
    from flexkv_connectors.common.gpu_share import staging_places

    got = staging_places(block_mib * MIB, free_mib * MIB, None)
    assert got == places
    assert sum(got) * block_mib * 4 <= free_mib


def test_a_device_without_room_for_two_blocks_is_refused():
    from flexkv_connectors.common.gpu_share import staging_places

    with pytest.raises(ConfigError, match="lower gpu_memory_utilization or block_tokens"):
        staging_places(8 * MIB, 63 * MIB, None)


def test_who_asks_for_more_gets_it_as_long_as_it_is_free():
    from flexkv_connectors.common.gpu_share import staging_places

    assert staging_places(8 * MIB, 1024 * MIB, 1024 * MIB) == (103, 25)
    with pytest.raises(ConfigError, match="gpu_staging_mb"):
        staging_places(8 * MIB, 1023 * MIB, 1024 * MIB)


def test_staging_that_holds_one_block_only_is_refused():
    from flexkv_connectors.common.gpu_share import staging_places

    with pytest.raises(ConfigError, match="two are needed"):
        staging_places(8 * MIB, 1024 * MIB, 15 * MIB)
