"""The name of an engine: the same in all of its processes, and in no other engine's."""

import subprocess
import sys

from flexkv_connectors.sglang.engine_name import engine_name

NAME = "from flexkv_connectors.sglang.engine_name import engine_name; print(engine_name(0, 0))"


def name_of_a_child():
    """Return the name in a process of which this one is the parent."""
    command = [sys.executable, "-c", NAME]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_processes_of_one_parent_have_one_name():
    assert name_of_a_child() == name_of_a_child()


def test_processes_of_different_parents_have_different_names():
    assert name_of_a_child().strip() != engine_name(0, 0)


def test_groups_that_attend_apart_have_different_names():
    assert engine_name(0, 0) != engine_name(0, 1)


def test_a_parent_whose_number_was_another_engines_has_a_name_of_its_own(monkeypatch):
    before = engine_name(0, 0)
    monkeypatch.setattr("flexkv_connectors.sglang.engine_name._start_of", lambda _: "1")
    assert engine_name(0, 0) != before


def test_engines_of_one_command_have_different_names():
    assert engine_name(0, 0) != engine_name(1, 0)


def test_where_processes_cannot_be_looked_at_nobody_has_the_same_name(monkeypatch):
    monkeypatch.setattr("os.getppid", lambda: 2**40)
    assert engine_name(0, 0) != engine_name(0, 0)
