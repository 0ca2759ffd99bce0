"""The list of mutants fits the sources, and what plants them says what it has seen."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts/mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mutant(runner, tmp_path, monkeypatch):
    """A source that adds, in a checkout of its own and in a copy of that."""
    for folder in ("checkout", "copy"):
        path = tmp_path / folder / "flexkv_core" / "sums.py"
        path.parent.mkdir(parents=True)
        path.write_text("def add(a, b):\n    return a + b\n")
    monkeypatch.setattr(runner, "ROOT", tmp_path / "checkout")
    return runner.Mutant("flexkv_core/sums.py", "a + b", "a - b", ("tests/test_sums.py",))


def test_every_mutant_can_be_planted_and_has_tests(runner):
    problems = []
    for mutant in runner.mutants(runner.LIST.read_text()):
        num_found = (ROOT / mutant.path).read_text().count(mutant.old)
        if num_found != 1 or not all((ROOT / test).exists() for test in mutant.tests):
            problems.append((str(mutant), num_found))
    assert problems == []


@pytest.mark.parametrize(
    ("passes", "same", "problem"),
    [
        (False, "", ""),
        (True, "", "SURVIVES flexkv_core/sums.py: a - b"),
        (True, "nobody subtracts", ""),
        (False, "nobody subtracts", "NOTICED, though listed as the same: flexkv_core/sums.py"),
    ],
)
def test_a_survivor_is_a_problem_unless_it_is_the_same(
    runner, mutant, tmp_path, monkeypatch, passes, same, problem
):
    seen = []

    def run(root, _):
        seen.append((root / mutant.path).read_text())
        return passes

    monkeypatch.setattr(runner, "passes", run)
    fields = (mutant.path, mutant.old, mutant.new, mutant.tests, same)
    assert runner.judge(tmp_path / "copy", runner.Mutant(*fields)).startswith(problem)
    assert "a - b" in seen[0]
    for folder in ("checkout", "copy"):
        assert "a + b" in (tmp_path / folder / mutant.path).read_text()


@pytest.mark.parametrize("content", ["", "a + b\na + b\n"])
def test_a_text_that_is_not_there_once_is_a_problem(runner, mutant, tmp_path, content):
    (tmp_path / "copy" / mutant.path).write_text(content)
    assert runner.judge(tmp_path / "copy", mutant).startswith("NOT FOUND")
