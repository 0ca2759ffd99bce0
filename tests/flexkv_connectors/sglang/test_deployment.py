"""From SGLang's words for a rank to ours."""

import pytest
from engine_values import (
    HEADS,
    LAYERS,
    OPTIONS,
    deployment,
    keys_and_values,
    latents,
    settings,
    storage,
)

from flexkv_connectors.sglang.deployment import read_cache_config, why_not
from flexkv_core.errors import ConfigError


def test_a_single_rank_keeps_the_whole_model():
    found = deployment()
    assert (found.heads, found.layers) == (range(HEADS), range(LAYERS))
    assert (found.key_head_size, found.value_head_size, found.dtype) == (32, 32, "float16")
    assert [column.name for column in found.columns] == ["heads-0-3.layers-0-5"]


def test_ranks_partition_the_heads_into_cells_of_the_largest_degree():
    ranks = [deployment(keys_and_values(2), {"max_tp": 4}, tp_rank=r, tp_size=2) for r in (0, 1)]
    assert [column.first_head for rank in ranks for column in rank.columns] == [0, 1, 2, 3]
    assert {rank.cell_heads for rank in ranks} == {1}
    assert {rank.total_heads for rank in ranks} == {HEADS}


def test_pages_as_they_are_are_one_cell_of_one_degree():
    rank = deployment(keys_and_values(2), {"block_format": "native"}, tp_rank=1, tp_size=2)
    assert [column.name for column in rank.columns] == ["heads-2-3.layers-0-5"]
    assert rank.memory.slot_bytes == rank.block_format.cell_bytes
    with pytest.raises(ConfigError, match=r"max_tp is 4, .* this engine's is 2"):
        deployment(keys_and_values(2), {"block_format": "native", "max_tp": 4}, tp_size=2)


def test_stages_partition_the_layers():
    pools = [keys_and_values(num_layers=3) for _ in range(2)]
    pools[1].start_layer = 3
    stages = [deployment(pool, pp_rank=rank, pp_size=2) for rank, pool in enumerate(pools)]
    assert [stage.layers for stage in stages] == [range(3), range(3, 6)]
    assert {stage.cell_layers for stage in stages} == {3}


def test_ranks_share_the_room():
    assert deployment().rank.quota_bytes == 1 << 30
    rank = deployment(keys_and_values(2, 3), tp_size=2, pp_size=2)
    assert rank.rank.quota_bytes == (1 << 30) // 4


def test_a_latent_is_one_head_without_values():
    found = deployment(latents(), is_mla_model=True)
    assert (found.total_heads, found.key_head_size, found.value_head_size) == (1, 32, 0)


def test_draft_layers_lie_behind_the_models():
    pool = keys_and_values(num_layers=LAYERS + 1)
    pool.target_layer_num = LAYERS
    found = deployment(pool)
    assert (found.num_draft_layers, found.layers) == (1, range(LAYERS + 1))


def test_engines_that_attend_in_parallel_have_names_of_their_own():
    assert deployment(dp_rank=0).rank.engine_id != deployment(dp_rank=1).rank.engine_id


def test_engines_of_one_command_have_names_of_their_own():
    engines = [deployment(engine=settings(engine_index=replica)) for replica in (0, 1)]
    assert len({engine.rank.engine_id for engine in engines}) == 2


def test_ranks_of_one_engine_have_one_name():
    ranks = [deployment(keys_and_values(2), tp_rank=rank, tp_size=2) for rank in (0, 1)]
    assert len({rank.rank.engine_id for rank in ranks}) == 1


@pytest.mark.parametrize(
    ("place", "engine", "sentence"),
    [
        ({"attn_cp_size": 2}, {}, "context parallelism"),
        ({"dcp_size": 2}, {}, "context parallelism"),
        ({"tp_size": 16, "is_mla_model": True}, {"tp_size": 16, "num_nodes": 2}, "several nodes"),
        ({"tp_size": 16}, {"tp_size": 16, "num_nodes": 8}, "several nodes"),
        ({}, {"is_multimodal": True}, "pictures"),
    ],
)
def test_what_cannot_be_served_is_named(place, engine, sentence):
    assert sentence in why_not(storage(**place), settings(**engine))


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"tp_size": 4},
        {"tp_size": 8},
        {"pp_size": 2},
        {"is_mla_model": True},
        {"is_mla_model": True, "tp_size": 8},
    ],
)
def test_what_can_be_served_is_not(place):
    assert why_not(storage(**place), settings()) is None


@pytest.mark.parametrize(
    ("place", "engine"),
    [
        ({"tp_size": 8, "pp_size": 2, "is_mla_model": True}, {"tp_size": 8, "num_nodes": 2}),
        ({"tp_size": 4, "is_mla_model": True}, {"tp_size": 16, "num_nodes": 2}),
        ({"tp_size": 16}, {"tp_size": 16, "num_nodes": 2}),
        ({"tp_size": 4}, {"tp_size": 4, "num_nodes": 4}),
    ],
)
def test_nodes_that_keep_apart_what_ranks_share_are_served(place, engine):
    """Stages, data-parallel attention, groups of heads, and heads of which each has one rank."""
    assert why_not(storage(**place), settings(**engine)) is None


def test_the_first_of_the_ranks_that_keep_the_same_heads_writes():
    ranks = [deployment(keys_and_values(1), tp_rank=rank, tp_size=8) for rank in range(8)]
    assert [rank.heads.start for rank in ranks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [rank.rank.is_follower for rank in ranks] == [False, True] * 4
    assert [rank.rank.has_followers for rank in ranks] == [True, False] * 4
    assert {(rank.total_heads, rank.rank.quota_bytes) for rank in ranks} == {
        (HEADS, (1 << 30) // 4)
    }


def test_one_rank_writes_the_latents_of_all_and_has_all_the_room():
    ranks = [deployment(latents(), tp_rank=rank, tp_size=2, is_mla_model=True) for rank in range(2)]
    assert [rank.rank.is_follower for rank in ranks] == [False, True]
    assert ranks[0].rank.quota_bytes == 1 << 30
    assert ranks[0].columns == ranks[1].columns == deployment(latents(), is_mla_model=True).columns


def test_a_rank_alone_with_its_heads_has_no_followers():
    assert not deployment(keys_and_values(1), tp_rank=1, tp_size=4).rank.has_followers


def test_an_sglang_without_context_parallel_decoding_is_served():
    older = storage()
    del older.dcp_size
    assert why_not(older, settings()) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "interface_v1 is not set"),
        ({"interface_v1": 1}, "nowhere to store"),
        (OPTIONS | {"cpu_cache_gb": 1}, "cpu_cache_gb means nothing here"),
        (OPTIONS | {"ssd_cache_gib": 1}, "did you mean ssd_cache_gb"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_cache_config(options)
    assert "\n" not in str(caught.value)


def test_options_of_sglangs_own_are_left_to_it():
    own = {"backend_name": "flexkv", "module_path": "m", "class_name": "c", "allocator": "shm"}
    assert read_cache_config(OPTIONS | own) == read_cache_config(OPTIONS)


def test_a_block_that_is_no_page_is_refused_with_what_to_set():
    with pytest.raises(ConfigError, match="--page-size 64"):
        deployment(options={"block_tokens": 64})
