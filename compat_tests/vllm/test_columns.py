"""Which cells of a block each rank has, and how much of the SSD, by its place in the engine."""

import pytest

from flexkv_core.errors import ConfigError


def columns(identity, config, degree, num_stages=1, **options):
    """Return the columns of every rank."""
    return [
        identity.deployment_of(
            identity.at_rank(config, rank, degree, num_stages), **options
        ).columns
        for rank in range(degree * num_stages)
    ]


def cells(column):
    return {
        (head, layer)
        for head in range(column.first_head, column.first_head + column.num_heads)
        for layer in range(column.first_layer, column.first_layer + column.num_layers)
    }


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("max_tp", [None, 4, 8])
def test_the_columns_of_an_engine_are_a_partition_of_the_model(
    identity, config_of, degree, num_stages, max_tp
):
    every = [
        column
        for rank in columns(identity, config_of("demo"), degree, num_stages, max_tp=max_tp)
        for column in rank
    ]
    covered = [cell for column in every for cell in cells(column)]

    assert sorted(covered) == [(head, layer) for head in range(4) for layer in range(8)]
    assert len({column.name for column in every}) == len(every)


def test_degrees_up_to_max_tp_have_the_same_columns_on_fewer_or_more_ranks(identity, config_of):
    one, two, four = (
        columns(identity, config_of("demo"), degree, max_tp=4) for degree in (1, 2, 4)
    )

    assert [len(one), len(two), len(four)] == [1, 2, 4]
    assert one[0] == sum(two, ()) == sum(four, ())
    assert [column.first_head for column in one[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "degree", "num_columns"), [("demo", 8, 4), ("mla", 4, 1)])
def test_ranks_that_hold_the_same_kv_have_the_same_column(
    identity, config_of, name, degree, num_columns
):
    found = columns(identity, config_of(name), degree)
    replicas = degree // num_columns

    assert len(set(found)) == num_columns
    assert all(found[rank] == found[rank - rank % replicas] for rank in range(degree))


def test_draft_layers_lie_behind_the_model_in_the_last_stage(identity, config_of):
    config = identity.at_rank(config_of("demo"), 1, degree=1, num_stages=2)
    (column,) = identity.deployment_of(config, num_draft_layers=1).columns

    assert (column.first_layer, column.num_layers) == (4, 5)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_a_rank_has_a_cell_for_each_of_its_columns(identity, config_of, degree):
    deployment = identity.deployment_of(identity.at_rank(config_of("demo"), 0, degree), max_tp=8)

    assert len(deployment.columns) == deployment.block_format.num_cells == max(1, 4 // degree)
    assert deployment.columns[0].num_heads == deployment.block_format.cell_heads == 1


@pytest.mark.parametrize(
    ("degree", "max_tp", "sentence"),
    [
        (2, 1, "max_tp is 1, but this engine's tensor-parallel degree is 2: set max_tp to a"),
        (2, 3, "max_tp is 3, but this engine's tensor-parallel degree is 2: set max_tp to a"),
        (1, 3, "max_tp is 3, but 4 KV heads cannot be spread over so many ranks: set max_tp"),
        (2, 6, "max_tp is 6, but 4 KV heads cannot be spread over so many ranks: set max_tp"),
    ],
)
def test_a_max_tp_that_does_not_fit_is_refused(identity, config_of, degree, max_tp, sentence):
    config = identity.at_rank(config_of("demo"), 0, degree)

    with pytest.raises(ConfigError) as refusal:
        identity.deployment_of(config, max_tp=max_tp)
    assert str(refusal.value).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "degree", "num_stages", "quota_gb"),
    [("demo", 1, 1, 8), ("demo", 2, 2, 2), ("demo", 8, 1, 2), ("mla", 4, 1, 8)],
)
def test_owners_share_the_ssd_quota_of_their_engine(
    identity, config_of, name, degree, num_stages, quota_gb
):
    config = identity.at_rank(config_of(name), 0, degree, num_stages)
    deployment = identity.deployment_of(config, ssd_cache_gb=8, ssd_cache_dir="/nowhere")

    assert deployment.ssd_quota_bytes == quota_gb << 30


def test_without_an_ssd_tier_there_is_no_quota(identity, config_of):
    assert identity.deployment_of(config_of()).ssd_quota_bytes is None
