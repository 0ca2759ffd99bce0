"""Staging holds what a step computes, or what was asked for, and never nothing."""

import importlib.util

import pytest

from flexkv_core.errors import ConfigError

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="needs torch and triton (`make setup-engine`)",
)


@pytest.mark.parametrize(
    ("block_mib", "step_blocks", "free_mib", "places"),
    [
        (8, 128, 8192, (128, 32)),
        (8, 3, 8192, (3, 1)),
        (8, 1, 8192, (1, 1)),
        (8, 128, 320, (8, 2)),
        (8, 128, 64, (1, 1)),
        (300, 1, 4096, (1, 1)),
    ],
)
def test_saves_have_room_for_a_step_as_long_as_that_is_a_quarter_of_what_is_free(
    block_mib, step_blocks, free_mib, places
):
    from flexkv_connectors.session.gpu_share import staging_places

    got = staging_places(block_mib * MIB, step_blocks, free_mib * MIB, None)
    assert got == places
    assert sum(got) * block_mib * 4 <= free_mib


def test_a_device_without_room_for_two_blocks_is_refused():
    from flexkv_connectors.session.gpu_share import staging_places

    with pytest.raises(ConfigError, match="lower gpu_memory_utilization or block_tokens"):
        staging_places(8 * MIB, 128, 63 * MIB, None)


def test_who_asks_for_more_gets_it_as_long_as_it_is_free():
    from flexkv_connectors.session.gpu_share import staging_places

    assert staging_places(8 * MIB, 1, 1024 * MIB, 1024 * MIB) == (103, 25)
    with pytest.raises(ConfigError, match="gpu_staging_mb"):
        staging_places(8 * MIB, 1, 1023 * MIB, 1024 * MIB)


def test_staging_that_holds_one_block_only_is_refused():
    from flexkv_connectors.session.gpu_share import staging_places

    with pytest.raises(ConfigError, match="two are needed"):
        staging_places(8 * MIB, 128, 1024 * MIB, 15 * MIB)
