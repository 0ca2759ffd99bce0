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
def mutant(runner, tmp_path):
    """A source that adds."""
    path = tmp_path / "flexkv_core" / "sums.py"
    path.parent.mkdir()
    path.write_text("def add(a, b):\n    return a + b\n")
    return runner.Mutant("flexkv_core/sums.py", "a + b", "a - b", ("tests/test_sums.py",))


def test_every_mutant_can_be_planted_and_has_tests(runner):
    problems = []
    for mutant in runner.mutants(runner.LIST.read_text()):
        num_found = (ROOT / mutant.path).read_text().count(mutant.old)
        if num_found != 1 or not all((ROOT / test).exists() for test in mutant.tests):
            problems.append((str(mutant), num_found))
    assert problems == []


@pytest.mark.parametrize(
    ("found", "same", "problem"),
    [
        ("noticed", "", ""),
        ("survives", "", "SURVIVES: flexkv_core/sums.py: a - b"),
        ("survives", "nobody subtracts", ""),
        ("noticed", "nobody subtracts", "NOTICED, though listed as the same: flexkv_core/sums.py"),
        ("pytest ended with 4", "", "PYTEST ENDED WITH 4: flexkv_core/sums.py"),
    ],
)
def test_a_survivor_is_a_problem_unless_it_is_the_same(
    runner, mutant, tmp_path, monkeypatch, found, same, problem
):
    seen = []

    def run(root, _):
        seen.append((root / mutant.path).read_text())
        return found

    monkeypatch.setattr(runner, "verdict", run)
    fields = (mutant.path, mutant.old, mutant.new, mutant.tests, same)
    told = runner.judge(tmp_path, runner.Mutant(*fields))
    assert told.startswith(problem)
    assert bool(told) == bool(problem)
    assert "a - b" in seen[0]
    assert "a + b" in (tmp_path / mutant.path).read_text()


@pytest.mark.parametrize("content", ["", "a + b\na + b\n"])
def test_a_text_that_is_not_there_once_is_a_problem(runner, mutant, tmp_path, content):
    (tmp_path / mutant.path).write_text(content)
    assert runner.judge(tmp_path, mutant).startswith("NOT FOUND")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("def test(): pass", "survives"),
        ("def test(): assert False", "noticed"),
        ("syntax error", "pytest ended with 2"),
        ("", "pytest ended with 5"),
    ],
    ids=["passes", "fails", "no Python", "no test"],
)
def test_only_a_test_that_fails_has_noticed(runner, tmp_path, content, found):
    (tmp_path / "test_it.py").write_text(content)
    assert runner.verdict(tmp_path, ["test_it.py"]) == found


def test_tests_that_hang_have_noticed(runner, tmp_path):
    assert runner.verdict(tmp_path, ["test_it.py"], limit_s=0.0) == "noticed"
