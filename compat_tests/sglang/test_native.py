"""Pages stored as they are: SGLang's real controller, and nothing copied on the way."""

import numpy as np
import pytest
from controller_rig import TOKENS, ControllerRig
from latent_rig import LatentRig
from sglang_process import flexkv
from storage_case import OurCase

from flexkv_connectors.sglang.page_memory import page_memory_of
from flexkv_connectors.testing.hicache_storage import HiCacheStorageContract, chain_of, extra_of

PROMPT = list(range(8 * TOKENS))
LAYOUTS = ["layer_first", "page_first", "page_first_direct", "page_head"]


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start controllers on one directory, one after the other."""

    def start(layout="page_first", kind=ControllerRig, block_format="native", **place):
        storage = flexkv(tmp_path, block_format=block_format)
        (rig,) = start_ranks(kind, layout, storage, [place])
        return rig

    return start


@pytest.mark.parametrize("layout", LAYOUTS)
class TestNativeStorage(HiCacheStorageContract):
    @pytest.fixture
    def case(self, start, layout, tmp_path):
        return OurCase(start(layout), tmp_path)


def restored(start, first, **changes):
    """Store pages in one process; tell what the next one loads, and whether it is right."""
    rig = start(**first)
    rig.backup(PROMPT, range(8))
    expected = [rig.page_bytes(page) for page in range(8)]
    rig = start(**{**first, **changes})
    rig.pool.kv_buffer.zero_()
    num_loaded = rig.prefetch(PROMPT, range(40, 32, -1))
    loaded = [rig.page_bytes(page) for page in range(40, 32, -1)]
    return num_loaded, loaded == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_process_prefetches_what_the_last_one_backed_up(start, layout):
    assert restored(start, {"layout": layout}) == (len(PROMPT), True)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_latents_are_stored_as_they_are(start, layout):
    assert restored(start, {"kind": LatentRig, "layout": layout}) == (len(PROMPT), True)


@pytest.mark.parametrize(
    "change",
    [{"layout": "page_first_direct"}, {"layout": "page_head"}, {"block_format": "cells"}],
)
def test_pages_of_another_order_are_a_miss(start, change):
    assert restored(start, {}, **change)[0] == 0


def test_cells_are_not_taken_for_pages(start):
    stored = {"block_format": "cells"}
    assert restored(start, stored, block_format="native")[0] == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_have_pages_of_their_own(start, rank):
    stored = {"rank": rank, "num_ranks": 2}
    assert restored(start, stored) == (len(PROMPT), True)


@pytest.mark.parametrize("place", [{"rank": 1, "num_ranks": 2}, {"rank": 0, "num_ranks": 1}])
def test_pages_of_another_rank_or_degree_are_a_miss(start, place):
    stored = {"rank": 0, "num_ranks": 2}
    assert restored(start, stored, **place)[0] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pieces_are_the_page_that_sglang_cuts_out(start, layout):
    rig = start(layout)
    memory = page_memory_of(rig.pool)
    ours = b"".join(memory.pieces(7))
    theirs = rig.pool.get_data_page(7 * TOKENS, flat=True).numpy()
    assert sorted(np.frombuffer(ours, np.float32)) == sorted(theirs)
    assert memory.num_slots == rig.pool.page_num


def indices_of(rig, what):
    """Return indices that do not name the 8 pages of 8 keys."""
    whole = rig.indices(range(20, 28))
    return {
        "one page less": whole[:-TOKENS],
        "one page more": rig.indices(range(20, 29)),
        "a page begun inside another": whole + 1,
    }[what]


@pytest.mark.parametrize("block_format", ["cells", "native"])
@pytest.mark.parametrize("what", ["one page less", "one page more", "a page begun inside another"])
def test_indices_that_do_not_name_a_page_for_each_key_are_refused(start, block_format, what):
    rig, keys = start(block_format=block_format), chain_of(1)
    before = [rig.page_bytes(page) for page in range(32)]
    assert not any(rig.storage.batch_set_v1(keys, indices_of(rig, what), extra_of([])))
    assert all(rig.storage.batch_set_v1(keys, rig.indices(range(8)), extra_of([])))
    assert not any(rig.storage.batch_get_v1(keys, indices_of(rig, what), extra_of([])))
    assert [rig.page_bytes(page) for page in range(32)] == before
    assert rig.storage.batch_exists(keys) == len(keys)
