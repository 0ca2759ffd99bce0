"""Models that people serve: what vLLM keeps of them, and what FlexKV does with it by both ways.

vLLM builds them from facts of their config.json, without weights and on no device.
"""

from functools import cache

import pytest
from architectures import ARCHITECTURES
from environment import HERE
from models_page import describe, render
from starts import STARTS

PAGE = HERE.parents[1] / "docs" / "models.md"
GIB = 2**30
DISK_PAGE = 4096

NAMES = list(ARCHITECTURES)
FEW = ["Qwen3-8B", "gpt-oss-120b", "DeepSeek-V3", "Qwen3.5-27B"]
"""One of each kind: full attention, window, MLA, state."""


@pytest.fixture(scope="session")
def described():
    """Return a function from a platform and degrees to rows, by name and degree."""

    @cache
    def described(platform, degrees="1", *names):
        rows = describe(platform, degrees, *names)
        return {(row["name"], row["degree"]): row for row in rows if "name" in row}, rows

    return described


@pytest.fixture
def row_of(described):
    """Return a function from a name and a degree to what is done below vLLM's offloading."""

    def row_of(name, degree):
        if degree == 1:
            by_name, _ = described("gpu")
        else:
            by_name, _ = described("gpu", "2,8", *(FEW if name in FEW else ()))
        row = by_name[name, degree]
        if "groups" not in row:
            pytest.skip(row["refusal"])
        return row

    return row_of


def param(name, *more):
    """Return a parameter that is left to the night if its model is not of the few."""
    return pytest.param(name, *more, marks=() if name in FEW else pytest.mark.nightly)


AT_DEGREES = [(name, 1) for name in NAMES]
AT_DEGREES += [param(name, degree) for name in NAMES for degree in (2, 8)]


def test_the_page_says_what_is_computed(described):
    (_, on_cpu), (_, on_gpu) = described("cpu"), described("gpu")

    assert PAGE.read_text() == render(on_cpu, on_gpu)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_takes_what_its_architecture_says(described, name):
    by_name, _ = described("gpu")

    assert by_name[name, 1]["token_bytes"] == ARCHITECTURES[name].token_bytes


@pytest.mark.parametrize("name", NAMES)
def test_a_session_stores_exactly_what_a_token_takes(described, name):
    by_name, _ = described("cpu")
    row = by_name[name, 1]

    assert row["refusal"] or row["stored_token_bytes"] == ARCHITECTURES[name].token_bytes


@pytest.mark.parametrize(("name", "degree"), AT_DEGREES)
def test_a_row_holds_a_block_of_the_largest_group_of_every_rank(row_of, name, degree):
    row = row_of(name, degree)

    assert row["copies"] in (1, degree)
    block_bytes = max(row["groups"]) * row["copies"]
    assert row["row_bytes"] == -(-block_bytes // DISK_PAGE) * DISK_PAGE


@pytest.mark.parametrize(("name", "degree"), AT_DEGREES)
def test_rows_fill_the_room_that_was_asked_for(row_of, name, degree):
    row = row_of(name, degree)

    assert row["room_bytes"] == 16 * GIB
    assert 0 <= 16 * GIB - row["num_rows"] * row["row_bytes"] < row["row_bytes"]


@pytest.mark.parametrize("name", [param(name) for name in NAMES])
def test_degrees_share_rows_where_vllm_lays_them_out_alike_and_in_one_size(row_of, name):
    """More ranks than KV heads keep copies, so their rows are larger."""
    rows = [row_of(name, degree) for degree in (1, 2, 8)]
    shared = [row for row in rows if row["is_shared"]]

    assert len({row["namespace"] for row in rows}) == 3
    assert len({row["shared_namespace"] for row in shared}) == len(
        {row["row_bytes"] for row in shared}
    )


def test_every_start_is_served_or_has_its_sentence(described):
    _, rows = described("gpu")
    starts = {row["start"]: row["offloading"] for row in rows if "start" in row}

    assert list(starts) == list(STARTS)
    assert starts["TP 8"] is starts["TP 8, MLA"] is starts["DP 2"] is None
    assert all(starts[title] for title in ("one CPU", "PP 2", "DCP 2", "ROCm", "XPU"))
    assert "--shm-size" in starts["`cpu_cache_gb` 16, 64 MiB of /dev/shm"]
