"""The sources as syntax trees: what the architecture tests read."""

import ast
from pathlib import Path

import pytest

FOLDERS = ("flexkv_core", "flexkv_connectors", "triton_kernels")


@pytest.fixture(scope="session")
def root():
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trees(root):
    """Map every source, as a path from the root, to its tree."""
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return {str(path.relative_to(root)): ast.parse(path.read_text()) for path in paths}
