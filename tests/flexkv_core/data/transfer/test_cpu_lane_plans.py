"""What the CPU lane makes of a plan: its results, its refusals, its operations and threads."""

import threading
from dataclasses import replace

import pytest
from cpu_lane_rig import make_rig, offload, onboard

from flexkv_core.data.transfer import cpu_lane
from flexkv_core.data.transfer.cpu_lane import CpuLane
from flexkv_core.errors import LayoutError
from flexkv_core.plan import Status
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.geometry import read_block


def test_a_result_counts_the_bytes_it_moved():
    rig = make_rig("LBNHC", num_threads=1)
    result = rig.run(offload([1, 2], [0, 1]))
    assert result.num_bytes == 2 * 3 * (2 * 4 * 16)


def test_a_result_tells_how_long_it_took():
    rig = make_rig("LBNHC")
    ticks = iter([10.0, 12.5])
    lane = CpuLane(0, rig.pages, rig.fmt, rig.host, clock=lambda: next(ticks))
    lane.submit(offload([1], [0]))
    assert [result.seconds for result in lane.poll()] == [2.5]


def test_a_load_at_its_deadline_is_too_late():
    rig = make_rig("LBNHC")
    clock = ManualClock(10.0)
    lane = CpuLane(0, rig.pages, rig.fmt, rig.host, clock=clock)
    lane.submit(offload([1], [0], deadline_s=10.0))
    lane.submit(offload([1], [0], deadline_s=10.1))
    assert [result.status for result in lane.poll()] == [Status.TIMEOUT, Status.OK]


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (offload([12], [0]), "page id 12 is not in 0 to 11"),
        (offload([-1], [0]), "page id -1 is not in 0 to 11"),
        (offload([0], [6]), "slot id 6 is not in 0 to 5"),
        (offload([0], [-1]), "slot id -1 is not in 0 to 5"),
        (onboard([0, 6], [0, 1]), "slot id 6 is not in 0 to 5"),
        (onboard([0, 1], [0, 12]), "page id 12 is not in 0 to 11"),
        (offload([0, 1], [0]), "pages 0 to 2 do not span 1 x 1"),
        (onboard([0, 1], [0]), "pages 0 to 1 do not span 2 x 1"),
        (onboard([0], [0], first_page=1), "pages 1 to 2 do not span 1 x 1"),
        (onboard([0], [0], first_page=-1), "pages -1 to 0 do not span 1 x 1"),
        (offload([0], [0], num_blocks=2), "the plan has 8 bytes of slot ids for 2 blocks"),
        (offload([], [], num_blocks=0), "a plan of 0 blocks moves nothing"),
    ],
)
def test_ids_that_do_not_fit_are_refused_with_one_sentence(plan, sentence):
    assert sentence == make_rig("LBHNC").run(plan).error


def test_a_block_is_only_saved_whole():
    rig = make_rig("LBHNC", pages_per_block=4)
    plan = offload([0, 1, 2], [0])
    assert rig.run(plan).error == "only whole blocks are saved: got 3 pages, expected 4"


@pytest.mark.parametrize(
    ("axes", "sizes", "num_saving", "num_loading"),
    [
        ("LBHNC", {"H": 4}, 1, 1),
        ("LBNHC", {"H": 4}, 1, 4),
        ("LBNHC", {"H": 9}, 1, 1),
        ("LBNHC", {"H": 1}, 1, 1),
        ("LPBNHC", {"H": 4, "P": 2}, 2, 4),
        ("BLPHNC", {"H": 4, "P": 2}, 2, 1),
        ("LBNPHC", {"H": 4, "P": 2}, 2, 8),
        ("LBHNC", {"layer_runs": [1, 2]}, 2, 2),
    ],
)
def test_a_block_takes_few_operations_and_no_short_loops(axes, sizes, num_saving, num_loading):
    lane = make_rig(axes, **sizes).lane
    counted = [len(lane._pieces[way]) for way in (cpu_lane._GATHER, cpu_lane._SCATTER)]
    assert counted == [num_saving, num_loading]


def test_large_plans_use_the_other_threads_as_well(monkeypatch):
    names = set()
    gather = cpu_lane._GATHER

    def spy(pieces, segments):
        names.add((threading.current_thread().name, len(segments)))
        gather.copy(pieces, segments)

    monkeypatch.setattr(cpu_lane, "_GATHER", gather._replace(copy=spy))
    rig = make_rig("LBHNC", N=64, C=4096, num_threads=2)
    rig.run(offload([1, 5, 7], [0, 1, 2]))
    assert {("MainThread", 2), ("flexkv-copy_0", 1)} == names


def test_small_plans_wake_nobody():
    rig = make_rig("LBHNC", num_threads=4)
    rig.run(offload([1, 5, 7], [0, 1, 2]))
    assert not rig.lane._threads._threads


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_heads": 4}, "heads, layers, bytes"),
        ({"num_layers": 2}, "heads, layers, bytes"),
        ({"token_bytes": 8}, "heads, layers, bytes"),
        ({"block_tokens": 6}, "whole number of the engine's pages"),
        ({"block_tokens": 16384}, "does not fit a slot"),
    ],
)
def test_pools_that_do_not_belong_together_refuse_to_start(changes, sentence):
    rig = make_rig("LBHNC")
    with pytest.raises(LayoutError, match=sentence):
        CpuLane(0, rig.pages, replace(rig.fmt, **changes), rig.host)


def test_plans_given_together_are_copied_together_and_share_the_time():
    ticks = iter([10.0, 13.0])
    rig = make_rig("LBHNC")
    before = [read_block(rig.pages, [page]) for page in (3, 5, 7)]
    lane = CpuLane(0, rig.pages, rig.fmt, rig.host, clock=lambda: next(ticks))
    plans = [offload([3], [0], job_id=1), offload([5, 7], [2, 1], job_id=2)]
    lane.submit_all([*plans, offload([99], [3], job_id=3)])
    results = {result.job_id: result for result in lane.poll()}
    assert [bytes(rig.slot(slot)) for slot in (0, 2, 1)] == before
    assert [(results[job].status, results[job].num_blocks) for job in (1, 2, 3)] == [
        (Status.OK, 1),
        (Status.OK, 2),
        (Status.ERROR, 0),
    ]
    assert [results[job].seconds for job in (1, 2)] == [1.0, 2.0]
