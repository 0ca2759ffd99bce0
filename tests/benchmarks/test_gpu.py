"""The plan for a GPU: what of it a CPU can check. No figure here means anything."""

import importlib
import importlib.util
import sys

import pytest

from benchmarks import rows
from benchmarks.gpu import __main__ as plan
from benchmarks.gpu import exactness, interference, kernel, lane_rig, limits, machine, paths
from benchmarks.gpu.budget import Budget, compare
from benchmarks.gpu.shapes import LAYOUTS, MODELS
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.errors import TierError
from flexkv_core.testing.cuda_runtime import FakeCuda
from flexkv_core.testing.doubles import ManualClock

MIB = 1 << 20
needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="needs torch and triton (`make setup-engine`)",
)


def test_a_ratio_is_taken_within_a_round_and_the_first_round_does_not_count():
    flat, lane = iter([9.0, 1.0, 2.0, 4.0]), iter([1.0, 2.0, 4.0, 4.0])
    runs = {"flat": lambda: next(flat), "lane": lambda: next(lane)}
    found = compare(runs, {"flat": 10**9, "lane": 10**9}, rounds=3)
    assert [(row["path"], row["gb_s"], row["ratio"]) for row in found] == [
        ("flat", 0.5, 1.0),
        ("lane", 0.25, 0.5),
    ]
    assert found[1]["ratio_min_max"] == [0.5, 1.0]


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


def test_a_step_that_fails_keeps_the_rows_of_those_before_it(monkeypatch, tmp_path, capsys):
    def failing():
        yield {"benchmark": "a", "us": 1}
        raise TierError("host", "refused")

    monkeypatch.setattr(machine, "why_no_gpu", lambda: None)
    monkeypatch.setattr(machine, "circumstances", dict)
    monkeypatch.setattr(plan, "steps", lambda *_: {"first": failing})
    monkeypatch.setattr(sys, "argv", ["gpu", "--json", str(tmp_path / "gpu.jsonl")])
    with pytest.raises(TierError):
        plan.main()
    assert [row["us"] for row in rows.read(tmp_path)] == [1]


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


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """Run the plan on the CPU."""
    import flexkv_kernels
    import torch

    from benchmarks.gpu import on_cpu

    on_cpu.stand_in(monkeypatch, flexkv_kernels.copy_pages_torch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # they would wait for one another, copy by small copy
    yield
    torch.set_num_threads(threads)


@needs_torch
def test_a_lane_is_measured_saving_loading_and_both(cpu_as_gpu):
    found = list(paths.lane(MODELS[2], LAYOUTS[0], 16, MIB, rounds=1))
    kinds = [(row["kind"], row["path"]) for row in found]
    assert kinds == [(kind, path) for kind in ("save", "load", "both") for path in ("flat", "lane")]


@needs_torch
def test_random_transfers_have_no_wrong_byte(cpu_as_gpu):
    found = list(exactness.exactness(32, Budget(60.0)))
    assert [(row["layout"], row["wrong_bytes"]) for row in found] == [(axes, 0) for axes in LAYOUTS]
    assert all(row["transfers"] >= 32 for row in found)


@pytest.mark.gpu
def test_random_transfers_on_real_streams_have_no_wrong_byte():
    if reason := machine.why_no_gpu():
        pytest.skip(reason)
    found = list(exactness.exactness(500, Budget(60.0)))
    assert [(row["layout"], row["wrong_bytes"]) for row in found] == [(axes, 0) for axes in LAYOUTS]


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


@pytest.fixture
def short_lists(cpu_as_gpu, monkeypatch):
    """Measure few of the grids and sizes."""
    monkeypatch.setattr(kernel, "PROGRAMS", (1, 2))
    monkeypatch.setattr(kernel, "TILES", (64,))
    monkeypatch.setattr(kernel, "DIRECT_PROGRAMS", (1, 2))
    monkeypatch.setattr(kernel, "DIRECT_WARPS", (4,))
    monkeypatch.setattr(interference, "PROGRAMS", (1, 2))
    monkeypatch.setattr(paths, "MODELS", MODELS[1:3])
    monkeypatch.setattr(paths, "SMALL_TRANSFERS", (1, 2))
    monkeypatch.setattr(limits, "ROW_BYTES", (1 << 10, 64 << 10))
    monkeypatch.setattr(limits, "find_cuda_runtime", lambda: FakeCuda().runtime)
    monkeypatch.setattr(lane_rig, "find_cuda_runtime", lambda: FakeCuda().runtime)


@needs_torch
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("exactness", 5),
        ("flat copies", 12),
        ("lane", 60),
        ("baselines", 4),
        ("slowdown of compute", 12),
        ("kernel", 5),
        ("small transfers", 4),
        ("rows", 12),
        ("kernel on pinned memory", 6),
    ],
)
def test_every_step_of_the_plan_runs(short_lists, name, num_rows):
    tiny = plan.Size(rounds=1, transfers=1, payload=MIB, width=64)
    assert len(list(plan.steps(tiny)[name]())) == num_rows


@needs_torch
def test_pinning_is_measured_for_the_pages_that_there_are(cpu_as_gpu, monkeypatch, capsys):
    def create(num_slots, slot_bytes, *, huge_pages, create=HostPool.create):
        if huge_pages:
            raise TierError("host", "none reserved")
        return create(num_slots, slot_bytes)

    monkeypatch.setattr(limits, "find_cuda_runtime", lambda: FakeCuda().runtime)
    monkeypatch.setattr(limits.HostPool, "create", create)
    found = list(limits.registering(1, 4 * MIB))
    assert [row["huge_pages"] for row in found] == [False]
    assert capsys.readouterr().out == "left out: tier host: none reserved\n"


@needs_torch
def test_a_grid_holds_for_one_run_only(monkeypatch):
    launcher = importlib.import_module("flexkv_kernels.copy_pages")
    before = launcher._TILE_WORDS, launcher._WARPS
    seen = []
    monkeypatch.setattr(kernel, "seconds", lambda run: seen.append(launcher._TILE_WORDS) or 1.0)
    kernel.with_grid(lambda: None, 8, 64, 2)()
    assert seen == [64]
    assert before == (launcher._TILE_WORDS, launcher._WARPS)
