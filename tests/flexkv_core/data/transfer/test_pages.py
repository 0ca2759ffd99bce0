"""Views of engine pages and host slots: every element lies where the strides say."""

import numpy as np
import pytest

from flexkv_core.block.layout import BlockFormat
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.transfer.pages import page_views, slot_view
from flexkv_core.testing.geometry import make_pages


@pytest.fixture
def host():
    pool = HostPool.create(2, 5000)
    pool.buffer[:] = bytes(len(pool.buffer))
    yield pool
    pool.close()


def test_an_element_is_one_plane_of_one_token_and_head():
    memory, pool = make_pages("PLBNHC", P=2, L=3, B=4, N=5, H=2, C=6)
    logical = memory.reshape(2, 3, 4, 5, 2, 6)
    logical[1, 2, 3, 4, 0] = range(6)
    (run,) = page_views(pool)
    assert run.pages.shape == (4, 2, 3, 5, 2)
    assert bytes(run.pages[3, 0, 2, 4, 1]) == bytes(range(6))


def test_writing_to_a_view_writes_the_memory_of_the_engine():
    memory, pool = make_pages("LBHNC", L=1, B=2, H=1, N=2, C=6)
    (run,) = page_views(pool)
    run.pages[1, 0, 0, 1, 0] = b"abcdef"
    assert memory[-6:].tobytes() == b"abcdef"


def test_runs_take_their_place_in_the_order_of_layers():
    memory, pool = make_pages("LBHNC", layer_runs=[1, 2], L=3, B=1, H=1, N=1, C=1)
    memory[:] = [20, 30, 10]
    first, second = page_views(pool)
    assert (first.layers, second.layers) == (range(1), range(1, 3))
    assert (first.pages.tobytes(), second.pages.tobytes()) == (bytes([10]), bytes([20, 30]))


def test_numpy_refuses_strides_that_leave_the_allocation():
    _, pool = make_pages("LBHNC", L=2, B=2, H=1, N=2, C=4)
    object.__setattr__(pool, "memory_bytes", pool.memory_bytes - 1)
    with pytest.raises(ValueError, match="strides is incompatible"):
        page_views(pool)


def test_a_slot_is_head_major_with_the_planes_of_a_token_side_by_side(host):
    _, pool = make_pages("PLBNHC", P=2, L=3, B=4, N=4, H=2, C=6)
    fmt = BlockFormat(num_heads=2, num_layers=3, block_tokens=8, token_bytes=12, cell_heads=1)
    slots = slot_view(host, fmt, pool)
    assert slots.shape == (2, 2, 2, 3, 4, 2)
    slots[1, 1, 1, 2, 3, 1] = b"abcdef"
    head, layer, token, plane = 1, 2, 1 * 4 + 3, 1
    offset = host.slot_stride + (((head * 3 + layer) * 8 + token) * 2 + plane) * 6
    assert bytes(host.buffer[offset : offset + 6]) == b"abcdef"
    assert np.count_nonzero(host.buffer) == 6
