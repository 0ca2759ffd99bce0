"""Modules by name, and types followed through them: the engine's and ours in one place."""

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from compat_tests.contract.interface import Module, annotation, read_module

CONTAINERS = {
    *("list", "tuple", "set", "frozenset", "dict", "defaultdict", "List", "Tuple", "Dict"),
    *("Sequence", "Iterable", "Mapping", "Iterator", "MutableSequence", "ConstantList"),
}
CLOSED = {"ABC", "Enum", "object", "Generic", "Protocol", "str", "int", "NamedTuple", "Struct"}
"""Bases outside the engine that bring no attribute that we read."""

MAX_HOPS = 10


class Symbol(NamedTuple):
    """Where a name is defined."""

    module: str
    name: str


class Typed(NamedTuple):
    """An annotation, and the module in which its names mean something."""

    module: str
    text: str


class Library:
    """Looks up modules in folders and records; each is read once, when somebody asks."""

    def __init__(self, *folders: Path, record: dict[str, Module] | None = None) -> None:
        self._folders = folders
        self._modules: dict[str, Module | None] = dict(record or {})
        self.asked: dict[str, set[str]] = {}
        """Names looked up so far, by module."""

    @classmethod
    def from_record(cls, path: Path, *folders: Path) -> "Library":
        """Read what `records.write_record` wrote; `folders` hold what is not recorded: ours."""
        return cls(*folders, record=json.loads(path.read_text()))

    def module(self, name: str) -> Module | None:
        """Return a module, or None if there is none of this name."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def has_module(self, name: str) -> bool:
        """Whether a module, or a folder of modules, has this name."""
        parts = name.split(".")
        return self.module(name) is not None or any(
            folder.joinpath(*parts).is_dir() for folder in self._folders
        )

    def _read(self, name: str) -> Module | None:
        parts = name.split(".")
        for folder in self._folders:
            package, plain = folder.joinpath(*parts, "__init__.py"), folder.joinpath(*parts)
            if package.is_file():
                return read_module(package.read_text(), name, is_package=True)
            if plain.with_name(f"{plain.name}.py").is_file():
                source = plain.with_name(f"{plain.name}.py").read_text()
                return read_module(source, name, is_package=False)
        return None

    def find(self, module: str, name: str, hops: int = MAX_HOPS) -> Symbol | None:
        """Follow imports to where `name` of `module` is defined; None if it is nowhere."""
        found = self.module(module)
        self.asked.setdefault(module, set()).add(name)
        if found is None or not hops:
            return None
        if any(name in found[kind] for kind in ("classes", "functions", "values")):
            return Symbol(module, name)
        if name in found["imports"]:
            source, _, original = found["imports"][name].partition(":")
            return self.find(source, original, hops - 1) if original else None
        stars = (key[1:] for key in found["imports"] if key.startswith("*"))
        return next((at for star in stars if (at := self.find(star, name, hops - 1))), None)

    def bases(self, cls: Symbol) -> Iterator[Symbol | str]:
        """Yield a class's bases: where they are defined, or their name if that is outside."""
        found = self.module(cls.module)
        for text in found["classes"].get(cls.name, {"bases": []})["bases"] if found else ():
            plain = text.partition("[")[0]
            yield self.find(cls.module, plain) or plain.rpartition(".")[2]

    def lineage(self, cls: Symbol) -> tuple[list[Symbol], bool]:
        """Return a class and its bases, nearest first, and whether all of them are known."""
        order, is_closed = [cls], True
        for base in self.bases(cls):
            if isinstance(base, str):
                is_closed &= base in CLOSED
                continue
            more, closed = self.lineage(base)
            order += [symbol for symbol in more if symbol not in order]
            is_closed &= closed
        return order, is_closed

    def members(self, cls: Symbol) -> dict[str, str]:
        """Return a class's members, those of its bases included."""
        merged: dict[str, str] = {}
        for symbol in reversed(self.lineage(cls)[0]):
            found = self.module(symbol.module)
            merged |= found["classes"].get(symbol.name, {"members": {}})["members"] if found else {}
        return merged

    def owner(self, cls: Symbol, member: str) -> Symbol | None:
        """Return the class of the lineage that defines `member`."""
        for symbol in self.lineage(cls)[0]:
            found = self.module(symbol.module)
            if found and member in found["classes"].get(symbol.name, {"members": {}})["members"]:
                return symbol
        return None

    def class_of(self, typed: Typed) -> Symbol | None:
        """Return the class that an annotation names, None if it is none that we know."""
        node = _without_none(typed.text)
        if not isinstance(node, ast.Name):
            return None
        at = self.find(typed.module, node.id)
        found = self.module(at.module) if at else None
        return at if at and found and at.name in found["classes"] else None

    def element_of(self, typed: Typed) -> Typed | None:
        """Return what is in a container: the last argument of its annotation."""
        node = _without_none(typed.text)
        if not isinstance(node, ast.Subscript) or ast.unparse(node.value) not in CONTAINERS:
            return None
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        kinds = [item for item in inside if ast.unparse(item) != "..."]
        return Typed(typed.module, ast.unparse(kinds[-1]))

    def result_of(self, symbol: Symbol, member: str) -> Typed:
        """Return what reading or calling a member, or a function, gives."""
        return Typed(symbol.module, annotation(member))


@functools.cache
def _without_none(text: str) -> ast.expr | None:
    """Parse an annotation: out of its quotes, and without the `None` it may also be."""
    try:
        node: ast.expr = ast.parse(text or "None", mode="eval").body
    except SyntaxError:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _without_none(node.value)
    if isinstance(node, ast.BinOp):
        sides = [side for side in (node.left, node.right) if ast.unparse(side) != "None"]
        return _without_none(ast.unparse(sides[0])) if len(sides) == 1 else None
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"Optional", "ClassVar"}:
        return _without_none(ast.unparse(node.slice))
    return node
