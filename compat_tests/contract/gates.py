"""What an engine looks at before it skips computing, held against what our connector looks at.

An engine that finds a new reason to compute everything writes it in one of two ways: it changes
the connector's answer in its scheduler, or it switches its own prefix cache off. A version that
does so for a reason that we have not read may serve wrong answers with us: it does not fit.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from compat_tests.contract.engines import Engine
from compat_tests.contract.fit import Finding

QUESTION = "get_num_new_matched_tokens"
SWITCH = "enable_prefix_caching"


def unknown_gates(engine: Engine, folder: Path) -> list[Finding]:
    """Return the gates of the package in `folder` that are not among those of `engine`."""
    if not engine.gates:
        return []
    answers, known = set(_of_answers(engine, folder)), dict(engine.gates)
    unknown = sorted({*answers, *_of_switches(engine, folder)} - known.keys())
    texts = [
        f"{gate} decides what may be skipped, and nothing of ours covers it" for gate in unknown
    ]
    if not answers:
        texts.append(f"the loop that asks {QUESTION} has gone: its gates were not looked at")
    return [Finding(True, text, f"{engine.ours}/support.py") for text in texts]


def _of_switches(engine: Engine, folder: Path) -> Iterator[str]:
    """Yield the functions that switch the engine's prefix cache off, by their dotted path."""
    for path in sorted((folder / engine.package).rglob("*.py")):
        source = path.read_text()
        if f"{SWITCH} = False" in source:
            parts = path.relative_to(folder).with_suffix("").parts
            yield from _switching(ast.parse(source), ".".join(parts))


def _switching(node: ast.AST, path: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _switching(child, f"{path}.{child.name}")
        elif isinstance(child, ast.Assign) and ast.unparse(child).endswith(f".{SWITCH} = False"):
            yield path
        else:
            yield from _switching(child, path)


def _of_answers(engine: Engine, folder: Path) -> Iterator[str]:
    """Yield the attributes that stand around the question to a connector, or change its answer."""
    for name in engine.callers:
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text() if path.is_file() else "")
        for loop in ast.walk(tree):
            if isinstance(loop, ast.While):
                for block in loop.body:
                    if isinstance(block, ast.If) and _asks(block):
                        yield from _Answer().attributes_around(block)


def _asks(node: ast.AST) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == QUESTION for one in ast.walk(node))


class _Answer:
    """Follows a connector's answer through the block that asks for it."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        """Variables that hold it, or what was made of it."""

    def attributes_around(self, block: ast.If) -> Iterator[str]:
        """Yield the attributes of objects that decide about the answer, or go into it."""
        yield from _attributes(block.test)
        for statement in block.body:
            yield from self._read(statement, [])

    def _read(self, statement: ast.stmt, tests: list[ast.expr]) -> Iterator[str]:
        if isinstance(statement, ast.If):
            inside = [*tests, statement.test]
            for inner in (*statement.body, *statement.orelse):
                yield from self._read(inner, inside)
        elif isinstance(statement, ast.Assign | ast.AugAssign):
            targets = getattr(statement, "targets", None) or [statement.target]
            written = {name for target in targets for name in _names(target)}
            if _asks(statement) or self._names & {*written, *_names(statement.value)}:
                self._names |= written
                for test in (*tests, statement.value):
                    yield from _attributes(test)


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and one.id != "self"}


def _attributes(node: ast.AST) -> set[str]:
    """Return `owner.name` of every attribute in an expression."""
    return {
        ast.unparse(one)
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)
    }
