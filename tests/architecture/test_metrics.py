"""The table of metrics and the code that counts name the same things."""

import ast

import pytest

from flexkv_core.metrics import METRICS

RECORDING = {"add": "counter", "set": "gauge"}


def recorded_in(tree):
    """Yield (kind, name) of every `.add("name")` and `.set("name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            kind, name = RECORDING.get(node.func.attr), node.args[0]
            if kind and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield kind, name.value


def strings_in(tree):
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


@pytest.fixture
def users(trees):
    """Return the trees of everything but the table itself."""
    return [tree for path, tree in trees.items() if path != "flexkv_core/metrics.py"]


def test_everything_recorded_is_a_row_of_its_kind(users):
    recorded = {use for tree in users for use in recorded_in(tree)}
    assert recorded - {(metric.kind, metric.name) for metric in METRICS.values()} == set()


def test_every_row_is_used(users):
    used = set().union(*(strings_in(tree) for tree in users))
    assert set(METRICS) - used == set()


def test_both_verbs_are_seen():
    tree = ast.parse('recorder.add("a", 2)\nself.metrics.set("b", 1)\nkeys.add(key)\n')
    assert set(recorded_in(tree)) == {("counter", "a"), ("gauge", "b")}
