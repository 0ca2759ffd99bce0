"""Python sources as interfaces: what a module defines, one line of text a member.

A member reads like its definition: `abstract def (self, key: str) -> bool`, `property -> int`,
`field: int = 3`, `value = (0, 1)`, `attribute: int` (set on `self`). So two versions are compared
as text, and parsed again only where a signature or an annotation matters. The same form is recorded
as JSON: a record is an interface whose sources are no longer needed.
"""

import ast
import copy
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

Module = dict[str, Any]
"""Keys: `classes` (name to `bases` and `members`), `functions`, `imports`, `values`, `calls`."""

DECORATORS = {
    "abstractmethod": "abstract ",
    "classmethod": "class ",
    "staticmethod": "static ",
    "property": "property ",
    "cached_property": "property ",
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
RECEIVERS = {"connector", "kv_connector", "storage_backend", "tier"}
"""What the engines call a variable that holds a connector, or a tier of their offloading."""


@functools.cache
def read_module(source: str, name: str, *, is_package: bool) -> Module:
    """Return what the module called `name` defines, wherever in its `if` and `try` blocks.

    The same source gives the same object: it must not be changed.
    """
    module: Module = {"classes": {}, "functions": {}, "imports": {}, "values": {}, "calls": {}}
    package = name if is_package else name.rpartition(".")[0]
    for node in _statements(ast.parse(source).body):
        if isinstance(node, ast.ClassDef):
            module["classes"][node.name] = _read_class(node)
            module["calls"] |= _calls_of_class(node)
        elif isinstance(node, FUNCTIONS):
            module["functions"][node.name] = _definition(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module["imports"] |= _imported(node, package)
        else:
            module["values"] |= _values(node)
    return module


def signature(member: str) -> ast.arguments:
    """Return the parameters of a member that is a function."""
    return _parse_definition(member).args


def annotation(member: str) -> str:
    """Return what reading or calling `member` gives, as written; empty if it is not said."""
    if "def (" in member:
        returns = _parse_definition(member).returns
        return ast.unparse(returns) if returns else ""
    text = member.partition(": ")[2]
    return text.partition(" = ")[0]


def is_property(member: str) -> bool:
    """Whether `member` is read, not called, though it is a function."""
    return "property " in member.partition("(")[0]


def without_body(member: str) -> str:
    """Return a member without the fingerprint of its body."""
    return member.partition("  # body ")[0]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that a module runs when it is imported, or a type checker reads."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)
            yield from _statements(getattr(node, "orelse", []))
        else:
            yield node


def _read_class(node: ast.ClassDef) -> dict[str, Any]:
    members: dict[str, str] = {}
    for child in _statements(node.body):
        if isinstance(child, FUNCTIONS):
            for name, text in _set_on_self(child):
                members.setdefault(name, text)
            # An @overload or a setter comes under the same name: the first one counts.
            if not any("setter" in ast.unparse(mark) for mark in child.decorator_list):
                members[child.name] = _definition(child)
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            default = f" = {_short(child.value)}" if child.value else ""
            members[child.target.id] = f"field: {_hint(child.annotation)}{default}"
        elif isinstance(child, ast.Assign):
            for target in child.targets:
                if isinstance(target, ast.Name):
                    members[target.id] = f"value = {_short(child.value)}"
    return {"bases": [ast.unparse(base) for base in node.bases], "members": members}


class _Unquote(ast.NodeTransformer):
    """Take annotations out of their quotes: with and without them, they say the same."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if ast.unparse(node.value).endswith("Literal") else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        is_name = isinstance(node.value, str) and node.value.replace(".", "").isidentifier()
        return ast.Name(node.value) if is_name else node


def _hint(node: ast.expr) -> str:
    return ast.unparse(_Unquote().visit(copy.deepcopy(node)))


def _parameters(node: ast.arguments) -> str:
    plain = copy.deepcopy(node)
    for arg in ast.walk(plain):
        if isinstance(arg, ast.arg) and arg.annotation is not None:
            arg.annotation = _Unquote().visit(arg.annotation)
    return ast.unparse(plain)


def _definition(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    kinds = "".join(word for mark, word in DECORATORS.items() if mark in marks)
    returns = f" -> {_hint(node.returns)}" if node.returns else ""
    return f"{kinds}def ({_parameters(node.args)}){returns}  # body {_fingerprint(node)}"


def _fingerprint(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Digest what a function does: its statements without docstring, names of lines or comments."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    text = "".join(ast.dump(statement) for statement in body)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def _parse_definition(member: str) -> ast.FunctionDef:
    text = without_body(member)
    [node] = ast.parse(f"def f{text[text.index('(') :]}: ...").body
    assert isinstance(node, ast.FunctionDef)
    return node


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 120 else f"{text[:120]}.."


def _set_on_self(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a method sets, with a type where it is written or passed in."""
    passed = {arg.arg: arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)}
    for child in ast.walk(node):
        if isinstance(child, ast.Assign | ast.AnnAssign):
            hint = getattr(child, "annotation", None)
            if hint is None and isinstance(child.value, ast.Name):
                hint = passed.get(child.value.id)
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            for target in targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    yield target.attr, f"attribute: {ast.unparse(hint)}" if hint else "attribute"


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """Map names that an import binds to `module` or `module:name`; a star to its module."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name
            if alias.asname
            else alias.name.partition(".")[0]
            for alias in node.names
        }
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
    source = ".".join(part for part in (base, node.module or "") if part)
    return {
        (
            f"*{source}" if alias.name == "*" else alias.asname or alias.name
        ): f"{source}:{alias.name}"
        for alias in node.names
    }


def _values(node: ast.stmt) -> dict[str, str]:
    """Map module-level names to what they are given, and registrations to their arguments."""
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return dict.fromkeys(names, _short(node.value))
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id: _short(node.value) if node.value else ""}
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.args:
        called = ast.unparse(node.value.func).rpartition(".")[2]
        return {f"{called}({ast.unparse(node.value.args[0])})": _short(node.value)}
    return {}


def _calls_of_class(node: ast.ClassDef) -> dict[str, list[str]]:
    """Map methods to the hooks they call, in the order of the source."""
    calls = {
        f"{node.name}.{child.name}": list(_calls(child.body, ""))
        for child in node.body
        if isinstance(child, FUNCTIONS)
    }
    return {name: order for name, order in calls.items() if order and order != ["yield"]}


def _calls(body: list[ast.stmt], condition: str) -> Iterator[str]:
    """Yield `hook(keywords)` as called, `if ` before a conditional one; `yield` is the forward."""
    for statement in body:
        inner = "if " if isinstance(statement, ast.If) else condition
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        if not any(blocks):
            found = (name for node in ast.walk(statement) if (name := _hook_call(node)))
            yield from (f"{condition}{name}" for name in found)
        for block in blocks:
            yield from _calls(block, inner)


def _hook_call(node: ast.AST) -> str:
    if isinstance(node, ast.Yield):
        return "yield"
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    receiver = ast.unparse(node.func.value).rpartition(".")[2]
    keywords = ", ".join(keyword.arg or "**" for keyword in node.keywords)
    return f"{node.func.attr}({keywords})" if receiver in RECEIVERS else ""
