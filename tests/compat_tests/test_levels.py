"""Levels: which tests they are, and what their results mean."""

import sys
from pathlib import Path

import pytest

from compat_tests import levels
from compat_tests.contract.engines import SGLANG, VLLM
from compat_tests.contract.sources import CannotCheckError
from compat_tests.environments import Environment

HERE = Environment(Path(sys.executable), "1.0")


@pytest.mark.parametrize("engine", [VLLM, SGLANG], ids=lambda engine: engine.name)
def test_every_test_file_of_an_engine_belongs_to_one_level(engine):
    given = [path for level in levels.LEVELS for path in named(engine, level)]
    there = (levels.HERE / engine.name).glob("test_*.py")
    assert sorted(given) == sorted(there)


def named(engine, level):
    try:
        return levels.files_of(engine, level)
    except CannotCheckError:
        return []


def test_a_level_without_tests_cannot_be_checked():
    with pytest.raises(CannotCheckError, match="level live of toy has no test file"):
        levels.files_of(VLLM._replace(name="toy"), levels.LIVE)


def test_a_file_that_there_is_not_cannot_be_checked():
    with pytest.raises(CannotCheckError, match=r"no test file test_nothing\.py"):
        levels.files_of(VLLM, levels.LAYOUT, ["test_nothing.py"])


def test_files_are_chosen_by_name_or_by_pattern():
    chosen = levels.files_of(VLLM, levels.LIVE, ["test_engine_skips.py", "test_offload_t*.py"])
    assert [path.name for path in chosen] == ["test_engine_skips.py", "test_offload_tier.py"]


def test_a_version_that_the_tests_are_not_written_for_cannot_be_checked_but_live():
    levels.require_rig(VLLM, levels.LIVE, "0.28.1")
    levels.require_rig(VLLM, levels.LAYOUT, "0.30.0")
    levels.require_rig(SGLANG, levels.LIVE, "0.5.16")
    with pytest.raises(CannotCheckError, match=r"written for vllm 0\.30 and later: try live"):
        levels.require_rig(VLLM, levels.LAYOUT, "0.29.0")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("def test_it(): assert True", 0),
        ("def test_it(): assert False", 1),
        ("import no_such_module_of_an_engine", 1),
    ],
    ids=["a test that passes", "a test that fails", "a module that has moved"],
)
def test_the_status_says_whether_the_tests_passed(tmp_path, content, status):
    path = tmp_path / "test_it.py"
    path.write_text(content)
    assert levels.run(HERE, levels.INSTALLED, [path]) == status


def test_tests_that_do_not_run_say_nothing_about_the_engine(tmp_path):
    (tmp_path / "test_it.py").touch()
    with pytest.raises(CannotCheckError, match="did not run the tests"):
        levels.run(HERE, levels.INSTALLED, [tmp_path / "test_it.py"])


def test_tests_that_do_not_end_say_nothing_either(tmp_path, monkeypatch):
    monkeypatch.setitem(levels.MAX_S, levels.INSTALLED, 0)
    (tmp_path / "test_it.py").touch()
    with pytest.raises(CannotCheckError, match="did not end within 0 s"):
        levels.run(HERE, levels.INSTALLED, [tmp_path / "test_it.py"])


def test_a_part_of_the_files_is_told_from_all_of_them():
    assert levels.state_of(0, 3, 3) == "passed"
    assert levels.state_of(1, 1, 3) == "failed (1 of 3 files)"
