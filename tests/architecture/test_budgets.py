"""Size and shape of the code: the budgets that keep it readable, counted on the syntax tree."""

import ast
import math

import pytest

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
P90_FUNCTION_LINES = 20
MAX_NESTING = 4

BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match, ast.AsyncFor, ast.AsyncWith)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CATCH_ALL = {"Exception", "BaseException"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def lines_of(function):
    """Count from `def` to the last line, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def nesting_of(node, depth=0):
    """Count the deepest blocks within blocks; an `elif` is as deep as its `if`."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        opens = isinstance(child, BLOCKS) and not is_elif
        if not isinstance(child, FUNCTIONS):
            deepest = max(deepest, nesting_of(child, depth + opens))
    return deepest


def catches_all(node):
    """Whether `node` catches or suppresses every exception."""
    if isinstance(node, ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        return any(kind is None or name_of(kind) in CATCH_ALL for kind in caught)
    if isinstance(node, ast.Call) and name_of(node.func) == "suppress":
        return any(name_of(argument) in CATCH_ALL for argument in node.args)
    return False


def touches_environment(node):
    """Whether `node` reads or writes the process environment."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in ENVIRONMENT for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT


def name_of(node):
    """Return the last part of a dotted name, or None."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def places(trees, is_wanted):
    """List `path:line` of every node that `is_wanted`."""
    return {
        f"{path}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if is_wanted(node)
    }


@pytest.fixture(scope="module")
def functions(trees):
    """Map `path:name` to every function of the sources."""
    return {
        f"{path}:{node.name}": node
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
    }


def test_files_are_short(root, trees):
    lines = {path: len((root / path).read_text().splitlines()) for path in trees}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_no_function_is_long(functions):
    lines = {name: lines_of(function) for name, function in functions.items()}
    assert {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES} == {}


def test_nine_functions_of_ten_are_short(functions):
    lengths = sorted(lines_of(function) for function in functions.values())
    assert lengths[math.ceil(0.9 * len(lengths)) - 1] <= P90_FUNCTION_LINES


def test_no_function_is_nested_deeply(functions):
    depths = {name: nesting_of(function) for name, function in functions.items()}
    assert {name: depth for name, depth in depths.items() if depth > MAX_NESTING} == {}


def test_no_broad_except_but_in_the_fault_barrier(trees):
    files = {place.partition(":")[0] for place in places(trees, catches_all)}
    assert files <= {"flexkv_connectors/fault_barrier.py"}


def test_only_one_file_reads_the_environment(trees):
    files = {place.partition(":")[0] for place in places(trees, touches_environment)}
    assert files <= {"flexkv_core/env.py"}


def test_a_docstring_does_not_count():
    [function] = ast.parse('def f():\n    """One\n\n    two.\n    """\n    return 1\n').body
    assert lines_of(function) == 2


def test_an_elif_is_not_deeper_than_its_if():
    tree = ast.parse("if a:\n  pass\nelif b:\n  for c in d:\n    pass\nelse:\n  pass\n")
    assert nesting_of(tree) == 2


@pytest.mark.parametrize(
    "source",
    [
        "try: f()\nexcept: pass",
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept (OSError, builtins.BaseException): pass",
        "with contextlib.suppress(Exception): f()",
    ],
)
def test_every_spelling_of_a_broad_except_is_seen(source):
    assert places({"file": ast.parse(source)}, catches_all)


@pytest.mark.parametrize("source", ["os.environ['A']", "os.getenv('A')", "from os import environ"])
def test_every_spelling_of_the_environment_is_seen(source):
    assert places({"file": ast.parse(source)}, touches_environment)
