"""Multi-head latent attention behind SGLang's real controller and host pools.

Latents are the same on every rank of an engine: the first stores them, and all load them.
"""

import pytest
from controller_rig import TOKENS, places_of
from latent_rig import LatentRig
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang_process import flexkv

NUM_PAGES = 8
PROMPT = list(range(NUM_PAGES * TOKENS))
TARGETS = range(30, 22, -1)
LAYOUTS = ["layer_first", "page_first", "page_first_direct"]
FORMATS = ["cells", "native"]


@pytest.fixture
def start(start_ranks, tmp_path):
    """Start the ranks of an engine on one directory, after the end of the engine before."""
    return lambda num_ranks, layout, **options: start_ranks(
        LatentRig, layout, flexkv(tmp_path, **options), places_of(num_ranks)
    )


def pages(rig, page_ids):
    return [rig.page_bytes(page) for page in page_ids]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_are_read_by_a_new_process_with_another_layout(start, layout):
    [rig] = start(1, "page_first_direct")
    rig.backup(PROMPT, range(NUM_PAGES))
    expected = pages(rig, range(NUM_PAGES))
    [rig] = start(1, layout)
    assert rig.prefetch(PROMPT, TARGETS) == len(PROMPT)
    assert pages(rig, TARGETS) == expected


@pytest.mark.parametrize("block_format", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_reads_what_the_first_has_stored(start, layout, block_format):
    first, *others = start(3, layout, block_format=block_format)
    expected = pages(first, range(NUM_PAGES))
    assert all(pages(rig, range(NUM_PAGES)) != expected for rig in others)
    first.backup(PROMPT, range(NUM_PAGES))
    for rig in (first, *others):
        assert rig.prefetch(PROMPT, TARGETS) == len(PROMPT)
        assert pages(rig, TARGETS) == expected


@pytest.mark.parametrize("degrees", [(1, 2), (2, 1), (2, 4)], ids=str)
def test_a_new_engine_of_another_degree_reads_what_was_stored(start, degrees):
    before, after = degrees
    first, *_ = start(before, "page_first")
    expected = pages(first, range(NUM_PAGES))
    first.backup(PROMPT, range(NUM_PAGES))
    for rig in start(after, "page_first"):
        assert rig.prefetch(PROMPT, TARGETS) == len(PROMPT)
        assert pages(rig, TARGETS) == expected


def test_a_rank_that_does_not_write_is_not_asked_to_and_stores_nothing(start):
    first, second = start(2, "page_first")
    keys = get_storage_hash_str(PROMPT, None, page_size=TOKENS)
    second.controller.write_storage(second.indices(range(8)), PROMPT, keys, prefix_keys=[])
    second.controller.ack_backup_queue.get(timeout=60)
    assert first.prefetch(PROMPT, TARGETS) == second.prefetch(PROMPT, TARGETS) == 0


@pytest.mark.parametrize("keeps_name", [True, False])
def test_weights_that_change_are_forgotten_by_all_ranks(start, keeps_name):
    options = {"weight_version": "v1"} if keeps_name else {}
    first, second = start(2, "page_first", **options)
    first.backup(PROMPT, range(NUM_PAGES))
    for rig in (second, first):
        rig.storage.forget_weights()
        assert second.prefetch(PROMPT, TARGETS) == 0
    first.fill(7)
    first.backup(PROMPT, range(NUM_PAGES))
    assert second.prefetch(PROMPT, TARGETS) == len(PROMPT)
    assert pages(second, TARGETS) == pages(first, range(NUM_PAGES))


def test_a_storage_that_is_emptied_is_empty_for_all_ranks(start):
    first, second = start(2, "page_first")
    first.backup(PROMPT, range(NUM_PAGES))
    for rig in (second, first):
        rig.storage.clear()
    assert first.prefetch(PROMPT, TARGETS) == second.prefetch(PROMPT, TARGETS) == 0


def test_ranks_that_are_attached_again_find_it_all(start):
    ranks = start(2, "page_first")
    ranks[0].backup(PROMPT, range(NUM_PAGES))
    for rig in ranks:
        rig.attach_again()
    assert [rig.prefetch(PROMPT, TARGETS) for rig in ranks] == [len(PROMPT)] * 2


def test_damage_is_a_miss_on_every_rank(start, tmp_path):
    first, second = start(2, "page_first")
    first.backup(PROMPT, range(NUM_PAGES))
    [slab] = tmp_path.rglob("*.slab")
    content = bytearray(slab.read_bytes())
    for at in range(4096 + 4096 + 100, len(content), 8192):
        content[at] ^= 1
    slab.write_bytes(content)
    assert second.prefetch(PROMPT, TARGETS) == 0
    assert first.prefetch(PROMPT, TARGETS) == 0
