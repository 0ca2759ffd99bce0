"""What is one layout is viewed as it lies; what is not is refused."""

import pytest
import torch
from flexkv_kernels import PageViews
from layouts import Pool

SIZES = {"L": 2, "B": 3, "H": 2, "N": 4, "C": 16}


def slab(*shape, dtype=torch.uint8):
    return torch.zeros(shape or (3, 2, 4, 16), dtype=dtype)


@pytest.mark.parametrize(
    ("slabs", "sentence"),
    [
        ([], "at least one slab"),
        ([slab(3, 4, 16)], r"a slab has shape \(3, 4, 16\)"),
        ([slab()[..., ::2]], "with stride 1 for C"),
        ([slab(3, 0, 4, 16)], r"a slab has shape \(3, 0, 4, 16\)"),
        ([slab(), slab(3, 2, 4, 8)], "slabs differ"),
        ([slab(), slab(dtype=torch.int8)], "slabs differ"),
        ([slab(), slab(3, 4, 2, 16).transpose(1, 2)], "slabs differ"),
    ],
)
def test_what_is_not_one_layout_is_refused(slabs, sentence):
    with pytest.raises(ValueError, match=sentence):
        PageViews(slabs)


@pytest.mark.parametrize(
    ("blocks", "num_planes"), [(slab(), 1), (torch.zeros((1, 2, 3, 4, 15)), 2)]
)
def test_blocks_that_cannot_be_cut_are_refused(blocks, num_planes):
    with pytest.raises(ValueError, match=r"expected \[blocks, H, L, N, C\]"):
        PageViews.of_blocks(blocks, num_planes)


def test_blocks_are_one_slab_for_each_layer_and_plane():
    blocks = torch.arange(2 * 2 * 3 * 4 * 6).view(2, 2, 3, 4, 6)
    views = PageViews.of_blocks(blocks, num_planes=2)
    assert len(views.slabs) == 6
    assert torch.equal(views.slabs[3], blocks[:, :, 1, :, 3:])


@pytest.mark.parametrize("axes", ["LBHNC", "BLNHC", "BHLNC"])
def test_a_pool_does_not_overlap_itself(axes):
    views = Pool(axes, **SIZES).views
    assert not views.overlaps_itself
    assert views.overlaps(views)


def test_pools_in_one_allocation_may_lie_side_by_side():
    memory = torch.zeros((2, 2, 3, 2, 4, 16), dtype=torch.uint8)
    first, second = PageViews(list(memory[0])), PageViews(list(memory[1]))
    assert not first.overlaps(second)
    assert not second.overlaps(first)


def test_a_slab_named_twice_overlaps_itself():
    one = slab()
    assert PageViews([one, one]).overlaps_itself


def test_alignment_is_what_every_place_is_a_multiple_of():
    storage = torch.zeros(4 + 3 * 2 * 4 * 16, dtype=torch.uint8)
    assert PageViews([storage[4:].view(3, 2, 4, 16)]).alignment == 4
