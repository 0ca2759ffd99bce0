"""What an import costs, and what nothing may import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"numpy", "sglang", "tensorrt_llm", "torch", "transformers", "triton", "vllm"}
FORBIDDEN = {
    "cloudpickle": "bytes from a cache must never become code",
    "dill": "bytes from a cache must never become code",
    "marshal": "bytes from a cache must never become code",
    "pickle": "bytes from a cache must never become code",
    "shelve": "bytes from a cache must never become code",
    "socket": "manager and worker meet in the engine's own metadata",
    "triton_kernels": "that name belongs to Triton's own package",
}

# A fresh interpreter: this one has loaded everything already.
PROGRAM = """
import json, sys, time
begin = time.perf_counter()
__import__(sys.argv[1])
seconds = time.perf_counter() - begin
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported_by(tree):
    """Yield the top-level package of every absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    "package",
    [
        "flexkv_core",
        "flexkv_connectors",
        "flexkv_connectors.tensorrt_llm",
        "flexkv_connectors.vllm",
    ],
)
def test_import_loads_no_engine_and_no_tensors(root, package):
    command = [sys.executable, "-c", PROGRAM, package]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    seconds, loaded = json.loads(done.stdout)
    sys.stdout.write(f"import {package}: {seconds:.3f} s (budget 0.3 s, not asserted)\n")
    assert HEAVY.intersection(loaded) == set()


def test_layers_hold(root):
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_forbidden_is_imported(trees):
    found = {path: FORBIDDEN.keys() & set(imported_by(tree)) for path, tree in trees.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_spelling_of_an_import_is_seen():
    tree = ast.parse("import pickle as p\nfrom socket import socket\nimport os.path\n")
    assert set(imported_by(tree)) == {"os", "pickle", "socket"}
