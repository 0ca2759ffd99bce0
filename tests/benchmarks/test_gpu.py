"""The plan for a GPU: what of it a CPU can check. No figure here means anything."""

import importlib
import importlib.util
import sys

import pytest

from benchmarks.gpu import __main__ as plan
from benchmarks.gpu import exactness, interference, kernel, limits, machine, paths
from benchmarks.gpu.budget import Budget, compare
from benchmarks.gpu.shapes import LAYOUTS, MODELS
from flexkv_core.testing.doubles import ManualClock
from flexkv_core.testing.instant_streams import use_instant_streams

MIB = 1 << 20
needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="needs torch and triton (`make setup-engine`)",
)


def test_a_ratio_is_taken_within_a_round_and_the_first_round_does_not_count():
    flat, lane = iter([9.0, 1.0, 2.0, 4.0]), iter([1.0, 2.0, 4.0, 4.0])
    runs = {"flat": lambda: next(flat), "lane": lambda: next(lane)}
    rows = compare(runs, {"flat": 10**9, "lane": 10**9}, rounds=3)
    assert [(row["path"], row["gb_s"], row["ratio"]) for row in rows] == [
        ("flat", 0.5, 1.0),
        ("lane", 0.25, 0.5),
    ]
    assert rows[1]["ratio_min_max"] == [0.5, 1.0]


def test_a_budget_is_spent_when_its_time_is_over():
    clock = ManualClock()
    budget = Budget(10.0, clock)
    assert not budget.is_spent
    clock.advance(10.0)
    assert budget.is_spent


def test_nothing_begins_after_the_time_is_over(capsys):
    clock = ManualClock()

    def slow():
        for index in range(3):
            clock.advance(6.0)
            yield {"index": index}

    steps = {"first": slow, "second": slow}
    assert list(plan.measure(steps, Budget(10.0, clock))) == [{"index": 0}, {"index": 1}]
    assert capsys.readouterr().out.endswith("out of time during: first\n")


def test_without_a_gpu_it_says_so_in_one_line_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "torch sees no CUDA device")
    monkeypatch.setattr(sys, "argv", ["gpu", "--json", str(tmp_path / "gpu.jsonl")])
    plan.main()
    assert capsys.readouterr().out == "not run: no GPU (torch sees no CUDA device)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module  580.95.05  Release", "580.95.05"),
        ("NVRM version: none", "unknown"),
    ],
)
def test_the_driver_is_told_by_its_version(tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    assert machine.driver_version(tmp_path / "version") == version


def test_a_machine_without_a_driver_has_none_that_is_known(tmp_path):
    assert machine.driver_version(tmp_path / "version") == "unknown"


class InstantTimer:
    """An event of a stream that runs at once; everything takes a millisecond."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1.0


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """Run the plan on the CPU: streams at once, the kernel's reference, nothing pinned."""
    import flexkv_kernels
    import torch

    use_instant_streams(monkeypatch, flexkv_kernels.copy_pages_torch)
    monkeypatch.setattr(machine, "DEVICE", "cpu")
    monkeypatch.setattr(flexkv_kernels, "copy_pages", flexkv_kernels.copy_pages_torch)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", InstantTimer)


@needs_torch
@pytest.mark.parametrize(
    ("model", "axes"), [*((MODELS[1], axes) for axes in LAYOUTS), (MODELS[2], LAYOUTS[0])]
)
def test_every_shape_goes_through_the_lane(cpu_as_gpu, model, axes):
    rows = list(paths.lane(model, axes, 16, MIB, rounds=1))
    kinds = [(row["kind"], row["path"]) for row in rows]
    assert kinds == [(kind, path) for kind in ("save", "load", "both") for path in ("flat", "lane")]


@needs_torch
def test_random_transfers_have_no_wrong_byte(cpu_as_gpu):
    rows = list(exactness.exactness(32, Budget(60.0)))
    assert [(row["layout"], row["wrong_bytes"]) for row in rows] == [(axes, 0) for axes in LAYOUTS]
    assert all(row["transfers"] >= 32 for row in rows)


@pytest.mark.gpu
def test_random_transfers_on_real_streams_have_no_wrong_byte():
    if reason := machine.why_no_gpu():
        pytest.skip(reason)
    rows = list(exactness.exactness(500, Budget(60.0)))
    assert [(row["layout"], row["wrong_bytes"]) for row in rows] == [(axes, 0) for axes in LAYOUTS]


@pytest.fixture
def trial(cpu_as_gpu):
    trial = exactness.Trial("LBNHC")
    yield trial
    trial.rig.close()


@needs_torch
def test_bytes_that_do_not_move_are_counted_as_wrong(trial, monkeypatch):
    monkeypatch.setattr(trial, "_submit", lambda source, target: None)
    trial.round()
    assert trial.num_wrong_bytes > 0


@needs_torch
def test_a_save_that_comes_after_the_next_pass_is_counted_as_wrong(trial, monkeypatch):
    def save_late(blocks, slots, contents):
        trial._write(blocks, contents)
        trial._write(blocks, contents ^ 0xFF)
        trial._submit(exactness._engine_pages(blocks), exactness._slots(slots))

    monkeypatch.setattr(trial, "_save", save_late)
    trial.round()
    assert trial.num_wrong_bytes > 0


@needs_torch
@pytest.mark.parametrize(
    ("step", "num_rows"),
    [
        (lambda: limits.flat(1, (MIB,)), 3),
        (lambda: limits.small_copies(1, MIB), 4),
        (lambda: paths.baselines(1, MIB), 4),
        (lambda: interference.slowdowns(1, MIB, width=64), 6),
        (lambda: kernel.grids(1, MIB), 5),
    ],
)
def test_every_other_step_runs(cpu_as_gpu, monkeypatch, step, num_rows):
    monkeypatch.setattr(kernel, "PROGRAMS", (1, 2))
    monkeypatch.setattr(kernel, "TILES", (64,))
    assert len(list(step())) == num_rows


@needs_torch
def test_a_grid_holds_for_one_run_only(monkeypatch):
    launcher = importlib.import_module("flexkv_kernels.copy_pages")
    before = launcher._TILE_WORDS, launcher._WARPS
    seen = []
    monkeypatch.setattr(kernel, "seconds", lambda run: seen.append(launcher._TILE_WORDS) or 1.0)
    kernel.with_grid(lambda: None, 8, 64, 2)()
    assert seen == [64]
    assert before == (launcher._TILE_WORDS, launcher._WARPS)
