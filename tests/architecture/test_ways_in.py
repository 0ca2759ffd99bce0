"""The ways into an engine touch none of its objects: those are the adapters' alone.

The contract checker follows an engine's objects through the folder of its adapter and no further.
What is typed throughout, and imports no engine, cannot have one in its hands.
"""

import ast

import pytest

WAYS = ("flexkv_connectors/session/", "flexkv_connectors/below_host/")
ENGINES = ("sglang", "tensorrt_llm", "vllm")
UNTYPED = {"Any", "getattr", "hasattr", "setattr"}


def names_in(tree):
    """Yield every name that a module uses, however it is spelled."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from names_in_annotation(node.value)


def names_in_annotation(text):
    """Yield the names of an annotation in quotes; other texts are seldom expressions."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return
    yield from (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def engines_imported_by(tree):
    """Return the engines that a module imports, itself or by way of their adapters."""
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    modules += [alias.name for node in imports for alias in node.names]
    return {engine for module in modules for engine in ENGINES if engine in module.split(".")}


@pytest.fixture(scope="module")
def ways(trees):
    return {path: tree for path, tree in trees.items() if path.startswith(WAYS)}


def test_a_way_in_is_typed_throughout(ways):
    found = {path: UNTYPED.intersection(names_in(tree)) for path, tree in ways.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_way_in_imports_no_engine(ways):
    found = {path: engines_imported_by(tree) for path, tree in ways.items()}
    assert {path: engines for path, engines in found.items() if engines} == {}


@pytest.mark.parametrize(
    "source",
    ["from typing import Any", "x: typing.Any", "def f(x: 'list[Any]'): ...", "getattr(x, 'y')"],
)
def test_every_spelling_of_what_has_no_type_is_seen(source):
    assert UNTYPED.intersection(names_in(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import vllm",
        "from vllm.config import VllmConfig",
        "from flexkv_connectors.sglang.storage import Storage",
        "if TYPE_CHECKING:\n    import tensorrt_llm.llmapi as api",
    ],
)
def test_every_spelling_of_an_engine_s_import_is_seen(source):
    assert engines_imported_by(ast.parse(source))
