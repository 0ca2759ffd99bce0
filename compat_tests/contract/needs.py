"""What a connector needs of its engine, read from the connector's own source.

- `imports`: names taken from the engine when the code runs;
- `classes`: our classes whose bases are the engine's: the hooks they override;
- `chains`: attributes read and methods called on the engine's objects, followed through local
  names as far as annotations go.

Each carries the file and line that depends on it, so there is no list to keep.
"""

import ast
from pathlib import Path
from typing import NamedTuple

from compat_tests.contract.engines import ROOT, Engine
from compat_tests.contract.library import Typed


class Step(NamedTuple):
    """One step from an object to the next."""

    kind: str
    """`read`, `call`, `element`, `super`, `function` (by name, of the root's module), or `ask`: a
    read that says what to do without it."""

    name: str = ""
    num_positional: int = 0
    keywords: tuple[str, ...] = ()


class Chain(NamedTuple):
    """What is read of an object whose type is written."""

    root: Typed
    steps: tuple[Step, ...] = ()

    def then(self, *steps: Step) -> "Chain":
        return Chain(self.root, self.steps + steps)


class Need(NamedTuple):
    """One place that depends on the engine."""

    place: str
    """`file:line` from the root of the checkout."""

    module: str
    """Ours."""

    cls: str = ""
    method: str = ""
    """In which the place is; both may be empty."""

    is_optional: bool = False
    """The code looks first, and goes on without it."""


class Needs(NamedTuple):
    """All of a connector's."""

    imports: list[tuple[Need, str, str]]
    """Place, module, and name (may be empty)."""

    classes: list[tuple[Need, dict[str, str]]]
    """A class, and the `file:line` of each method that is marked as an override."""

    chains: list[tuple[Need, Chain]]


def needs_of(engine: Engine, root: Path = ROOT) -> Needs:
    """Read the connector of `engine` below `root`, and the suites that belong to it."""
    needs = Needs([], [], [])
    folders = filter(None, (engine.ours, engine.suites))
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        relative = path.relative_to(root)
        parts = relative.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        _Reader(engine, str(relative), module, needs).visit(ast.parse(path.read_text()))
    return needs


class _Reader(ast.NodeVisitor):
    """Walks one module of ours, in the order of the source."""

    def __init__(self, engine: Engine, path: str, module: str, needs: Needs) -> None:
        self._engine, self._path, self._module, self._needs = engine, path, module, needs
        self._class = self._method = ""
        self._known: dict[str, Chain] = {}
        self._is_optional = False

    def _need(self, node: ast.AST) -> Need:
        place = f"{self._path}:{getattr(node, 'lineno', 1)}"
        return Need(place, self._module, self._class, self._method, self._is_optional)

    def _typed(self, text: str) -> Chain:
        return Chain(Typed(self._module, text))

    # Scopes

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return
        self.visit(node.test)
        self._narrow(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_Assert(self, node: ast.Assert) -> None:
        self.generic_visit(node)
        self._narrow(node.test)

    def _narrow(self, test: ast.expr) -> None:
        """Take over the type that `isinstance(name, Type)` says."""
        match test:
            case ast.Call(func=ast.Name("isinstance"), args=[ast.Name(name), ast.Name(cls)]):
                self._known[name] = self._typed(cls)

    def visit_Try(self, node: ast.Try) -> None:
        before = self._is_optional
        caught = " ".join(ast.unparse(item.type) for item in node.handlers if item.type)
        self._is_optional |= "ImportError" in caught or "ModuleNotFoundError" in caught
        for statement in node.body:
            self.visit(statement)
        self._is_optional = before
        for statement in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._class = node.name
        overrides = {
            item.name: f"{self._path}:{item.lineno}"
            for item in node.body
            if isinstance(item, ast.FunctionDef)
            and (item.name == "__init__" or "override" in map(ast.unparse, item.decorator_list))
        }
        self._needs.classes.append((self._need(node), overrides))
        self.generic_visit(node)
        self._class = ""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._known = self._known, dict(self._known)
        before, self._is_optional = self._is_optional, self._is_optional or _looks_first(node)
        is_method = bool(self._class) and not self._method
        if is_method:
            self._method = node.name
            self._known["self"] = self._known["cls"] = self._typed(self._class)
        for arg in (*node.args.args, *node.args.kwonlyargs):
            if arg.annotation is not None:
                self._known[arg.arg] = self._typed(ast.unparse(arg.annotation))
        for statement in node.body:
            self.visit(statement)
        self._known, self._is_optional = outer, before
        if is_method:
            self._method = ""

    # Imports

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._import(node, alias.name, "")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._import(node, node.module or "", alias.name)

    def _import(self, node: ast.AST, module: str, name: str) -> None:
        if module.partition(".")[0] != self._engine.package:
            return
        self._needs.imports.append((self._need(node), module, name))
        if not self._is_optional:
            self._known[name or module] = Chain(Typed(module if name else "", name or module))

    # Names that get a value

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._known[node.target.id] = self._typed(ast.unparse(node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self._bind_element(node.target, node.iter)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)
        self._bind_element(node.target, node.iter)
        for condition in node.ifs:
            self.visit(condition)

    def generic_visit(self, node: ast.AST) -> None:
        """Visit what gives a comprehension its names before what uses them."""
        for generator in getattr(node, "generators", ()):
            self.visit(generator)
        super().generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._learn(target.id, self._chain(value))
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=False):
                self._bind(one, its)
        elif isinstance(target, ast.Tuple) and len(target.elts) == 1:
            self._bind_element(target.elts[0], value)

    def _bind_element(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            chain = self._chain(value)
            self._learn(target.id, chain and chain.then(Step("element")))

    def _learn(self, name: str, chain: Chain | None) -> None:
        self._known.pop(name, None)
        if chain is not None:
            self._known[name] = chain

    # Uses

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._use(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._use(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._use(node)

    def _use(self, node: ast.expr) -> None:
        """Note the chain that ends here as a whole, and look into the arguments on its way."""
        chain = self._chain(node)
        if chain is None:
            self.generic_visit(node)
            return
        self._needs.chains.append((self._need(node), chain))
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute | ast.Call | ast.Subscript):
            for aside in _arguments(inner):
                self.visit(aside)
            inner = _before(inner)
        if not isinstance(inner, ast.Name):
            self.visit(inner)

    def _chain(self, node: ast.expr) -> Chain | None:
        """Return how `node` is reached from something with a written type, None if it is not."""
        if isinstance(node, ast.Name):
            return self._known.get(node.id)
        if isinstance(node, ast.BoolOp | ast.IfExp):
            return self._chain(node.values[0] if isinstance(node, ast.BoolOp) else node.body)
        if isinstance(node, ast.Subscript):
            inner = None if isinstance(node.slice, ast.Slice) else self._chain(node.value)
            return inner and inner.then(Step("element"))
        if isinstance(node, ast.Attribute):
            inner = self._chain(node.value)
            return inner and inner.then(Step("read", node.attr))
        return self._call_chain(node) if isinstance(node, ast.Call) else None

    def _call_chain(self, node: ast.Call) -> Chain | None:
        called = ast.unparse(node.func)
        if called == "getattr" and isinstance(node.args[1], ast.Constant):
            inner = self._chain(node.args[0])
            kind = "ask" if len(node.args) == 3 else "read"
            return inner and inner.then(Step(kind, str(node.args[1].value)))
        if called == "super":
            return self._typed(self._class).then(Step("super"))
        is_starred = any(isinstance(arg, ast.Starred) for arg in node.args)
        keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
        step = Step("call", "", -1 if is_starred else len(node.args), keywords)
        if isinstance(node.func, ast.Name) and node.func.id not in self._known:
            return self._typed("").then(Step("function", node.func.id), step)
        inner = self._chain(node.func)
        return inner and inner.then(step)


def _arguments(node: ast.AST) -> list[ast.expr]:
    """Return the expressions of one step that are no part of the chain."""
    if isinstance(node, ast.Call):
        is_getattr = ast.unparse(node.func) == "getattr"
        return [*node.args[is_getattr:], *(keyword.value for keyword in node.keywords)]
    return [node.slice] if isinstance(node, ast.Subscript) else []


def _before(node: ast.Attribute | ast.Call | ast.Subscript) -> ast.expr:
    """Return what the last step of a chain was taken from."""
    if not isinstance(node, ast.Call):
        return node.value
    return node.args[0] if ast.unparse(node.func) == "getattr" else node.func


def _looks_first(node: ast.FunctionDef) -> bool:
    """Whether a function asks which version of the engine it has, by what there is."""
    return any(isinstance(item, ast.Name) and item.id == "hasattr" for item in ast.walk(node))
