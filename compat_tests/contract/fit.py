"""Whether an engine gives what a connector needs of it."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from compat_tests.contract.engines import Engine
from compat_tests.contract.interface import is_property, signature, without_body
from compat_tests.contract.library import Library, Symbol, Typed
from compat_tests.contract.needs import Chain, Need, Needs, Step

ENUM_ATTRIBUTES = {"name", "value"}


class Finding(NamedTuple):
    """Something that the connector needs and the engine does not have."""

    is_broken: bool
    """False for a note: a hook of newer versions, or something that the code can do without."""

    text: str
    place: str


class Bound(NamedTuple):
    """A function that was read and not called yet."""

    owner: Symbol
    name: str
    member: str
    is_method: bool


class Fit:
    """Holds the needs of one connector against one engine; `findings` and `uses` are the result."""

    def __init__(
        self, engine: Engine, needs: Needs, library: Library, older: Sequence[Library] = ()
    ) -> None:
        """Compare.

        Args:
            engine: Which one.
            needs: Our connector's.
            library: The engine's modules, and ours.
            older: The same of older versions: a hook that one of them has was not added later,
                it has gone.
        """
        self._engine, self._library, self._older = engine, library, older
        self.findings: list[Finding] = []
        self.uses: dict[str, set[str]] = {}
        """Paths of the engine's members to our places that depend on them."""

        self._dormant: set[tuple[str, str]] = set()
        """(class, method) of ours that this engine never calls."""

        for need, overrides in needs.classes:
            self._check_class(need, overrides)
        for need, module, name in needs.imports:
            self._check_import(need, module, name)
        for need, chain in needs.chains:
            if (need.cls, need.method) not in self._dormant:
                self._check_chain(need, chain)
        for path, place in engine.layouts:
            self._check_layout(Symbol(*path.rsplit(".", 1)), place)
        self.findings = sorted(
            set(self.findings), key=lambda one: (not one.is_broken, one.place, one.text)
        )

    def _report(self, text: str, place: str, *, is_broken: bool = True) -> None:
        self.findings.append(Finding(is_broken, text, place))

    def _is_theirs(self, symbol: Symbol) -> bool:
        return symbol.module.partition(".")[0] == self._engine.package

    def _note_use(self, symbol: Symbol, member: str, place: str) -> None:
        path = ".".join(part for part in (*symbol, member) if part)
        self.uses.setdefault(path, set()).add(place)

    # Classes and their hooks

    def _check_class(self, need: Need, overrides: Mapping[str, str]) -> None:
        cls = Symbol(need.module, need.cls)
        theirs = [base for base in self._library.lineage(cls)[0] if self._is_theirs(base)]
        if not theirs:
            return
        for base in theirs:
            self._note_use(base, "", need.place)
        ours = self._library.members(cls)
        for name, place in overrides.items():
            self._check_hook(need, theirs, name, ours[name], place)
        if need.cls not in ours.get("__new__", need.cls):
            return  # it stands for others, and is never made
        for name, member in ours.items():
            if member.startswith("abstract "):
                self._report(f"{theirs[0].name}.{name} is abstract and not overridden", need.place)

    def _check_hook(
        self, need: Need, theirs: list[Symbol], name: str, our_member: str, place: str
    ) -> None:
        owner = next((base for base in theirs if self._own(base, name)), None)
        if owner is None:
            if name != "__init__":
                self._dormant.add((need.cls, name))
                self._report_hook(theirs, name, place)
            return
        self._note_use(owner, name, place)
        if reason := why_not_called_alike(self._own(owner, name), our_member):
            self._report(f"{owner.name}.{name}: {reason}", place)

    def _report_hook(self, theirs: list[Symbol], name: str, place: str) -> None:
        """Report a hook that is never called: it is not there yet, or not any more."""
        had_it = any(older.owner(base, name) for older in self._older for base in theirs)
        text = f"{theirs[0].name} has no hook {name}" + (" any more" if had_it else " yet")
        self._report(text, place, is_broken=had_it)

    def _check_layout(self, cls: Symbol, place: str) -> None:
        """Hold an enumeration of layouts against the newest older version that has it."""
        before = [members for older in self._older if (members := older.members(cls))]
        now = self._library.members(cls)
        for name, member in (before[-1] if before else {}).items():
            if member.startswith("value") and now.get(name) != member:
                self._report(f"{cls.name}.{name} was {member}, is {now.get(name)}", place)

    def _own(self, symbol: Symbol, member: str) -> str:
        found = self._library.module(symbol.module)
        return found["classes"].get(symbol.name, {"members": {}})["members"].get(member, "")

    # Imports

    def _check_import(self, need: Need, module: str, name: str) -> None:
        at = self._library.find(module, name) if name else None
        if at is not None:
            self._note_use(at, "", need.place)
        path = f"{module}.{name}" if name else module
        if at is None and not self._library.has_module(path):
            is_called = (need.cls, need.method) not in self._dormant
            what = f"there is no {path}" + ("" if is_called else f": only {need.method} needs it")
            self._report(what, need.place, is_broken=is_called and not need.is_optional)

    # Chains

    def _check_chain(self, need: Need, chain: Chain) -> None:
        at: Typed | Bound | None = chain.root
        num_before = len(self.findings)
        for step in chain.steps:
            at = self._step(at, step, need.place)
            if at is None:
                break
        if need.is_optional:
            late = self.findings[num_before:]
            self.findings[num_before:] = [one._replace(is_broken=False) for one in late]

    def _step(self, at: Typed | Bound | None, step: Step, place: str) -> Typed | Bound | None:
        if isinstance(at, Bound):
            return self._call(at, step, place) if step.kind == "call" else None
        assert at is not None
        if step.kind == "element":
            return self._library.element_of(at)
        if step.kind == "function":
            return self._function(at.module, step.name, place)
        cls = self._library.class_of(at)
        return self._of_class(cls, at, step, place) if cls else self._of_module(at, step, place)

    def _of_class(self, cls: Symbol, at: Typed, step: Step, place: str) -> Typed | Bound | None:
        if step.kind == "super":
            bases = [base for base in self._library.bases(cls) if isinstance(base, Symbol)]
            return Typed(*bases[0]) if bases else None
        if step.kind == "call":
            return self._construct(cls, at, step, place)
        return self._read(cls, step, place)

    def _function(self, module: str, name: str, place: str) -> Typed | Bound | None:
        at = self._library.find(module, name)
        found = self._library.module(at.module) if at else None
        if at is None or found is None:
            return None
        if at.name in found["functions"]:
            if self._is_theirs(at):
                self._note_use(at, "", place)
            return Bound(at, name, found["functions"][at.name], is_method=False)
        return Typed(*at)

    def _of_module(self, at: Typed, step: Step, place: str) -> Typed | Bound | None:
        """Read a name of a module that was imported itself; anything else is not known."""
        module = ".".join(part for part in at if part)
        is_theirs = at.text.isidentifier() and self._is_theirs(Symbol(module, ""))
        found = self._library.module(module) if is_theirs else None
        if found is None or step.kind != "read" or "__getattr__" in found["functions"]:
            return None
        if self._library.find(module, step.name) is None:
            if not self._library.has_module(f"{module}.{step.name}"):
                self._report(f"there is no {module}.{step.name}", place)
            return None
        return self._function(module, step.name, place)

    def _read(self, cls: Symbol, step: Step, place: str) -> Typed | Bound | None:
        owner = self._library.owner(cls, step.name)
        if owner is None:
            self._miss(cls, step, place)
            return None
        if self._is_theirs(owner):
            self._note_use(owner, step.name, place)
        member = self._own(owner, step.name)
        if "def (" in member and not is_property(member):
            return Bound(owner, step.name, member, is_method=not member.startswith("static "))
        return self._library.result_of(owner, member)

    def _miss(self, cls: Symbol, step: Step, place: str) -> None:
        lineage, is_closed = self._library.lineage(cls)
        is_theirs = any(map(self._is_theirs, lineage))
        members = self._library.members(cls)
        if not is_theirs or not is_closed or "__getattr__" in members:
            return
        if step.name not in ENUM_ATTRIBUTES and not step.name.startswith("__"):
            is_broken = step.kind != "ask"
            self._report(f"{cls.name} has no {step.name}", place, is_broken=is_broken)

    def _call(self, at: Bound, step: Step, place: str) -> Typed:
        if self._is_theirs(at.owner):
            parameters = signature(at.member)
            if at.is_method:
                parameters = without_first(parameters)
            if reason := why_not_callable(parameters, step):
                self._report(f"{at.owner.name}.{at.name}: {reason}", place)
        return self._library.result_of(at.owner, at.member)

    def _construct(self, cls: Symbol, at: Typed, step: Step, place: str) -> Typed:
        members = self._library.members(cls)
        if not self._is_theirs(cls):
            return at
        if "__init__" in members:
            parameters = without_first(signature(members["__init__"]))
        else:
            parameters = parameters_of_fields(members)
        if reason := why_not_callable(parameters, step):
            self._report(f"{cls.name}(): {reason}", place)
        self._note_use(cls, "", place)
        for keyword in step.keywords:
            self._note_use(cls, keyword, place)
        return at


def without_first(parameters: ast.arguments) -> ast.arguments:
    """Return the parameters of a method without `self`."""
    names = parameters.args[1:] if not parameters.posonlyargs else parameters.args
    return ast.arguments(
        posonlyargs=parameters.posonlyargs[1:],
        args=names,
        vararg=parameters.vararg,
        kwonlyargs=parameters.kwonlyargs,
        kw_defaults=parameters.kw_defaults,
        kwarg=parameters.kwarg,
        defaults=parameters.defaults,
    )


def parameters_of_fields(members: Mapping[str, str]) -> ast.arguments:
    """Return the parameters of a class that is made by its fields."""
    fields = [(name, text) for name, text in members.items() if text.startswith("field: ")]
    shown = [f"{name}=None" if " = " in text else name for name, text in fields]
    return signature(f"def ({', '.join(['*', *shown] if shown else [])})")


def why_not_callable(parameters: ast.arguments, step: Step) -> str:
    """Say what keeps a call as we write it from working; empty if nothing does."""
    names = [arg.arg for arg in (*parameters.posonlyargs, *parameters.args)]
    required = names[: len(names) - len(parameters.defaults)]
    required += [
        arg.arg
        for arg, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
        if default is None
    ]
    known = {*names, *(arg.arg for arg in parameters.kwonlyargs)}
    if parameters.kwarg is None and (strangers := [k for k in step.keywords if k not in known]):
        return f"takes no {', '.join(strangers)}"
    if step.num_positional < 0:
        return ""
    if parameters.vararg is None and step.num_positional > len(names):
        return f"takes {len(names)} arguments by position, we pass {step.num_positional}"
    missing = set(required) - set(names[: step.num_positional]) - set(step.keywords)
    return f"wants {', '.join(sorted(missing))} as well" if missing else ""


def why_not_called_alike(theirs: str, ours: str) -> str:
    """Say what keeps the engine from calling our override as it calls its own method."""
    if is_property(theirs) != is_property(ours) or ("class def" in theirs) != ("class def" in ours):
        return f"is now `{without_body(theirs)}`, ours is `{without_body(ours)}`"
    if "def (" not in theirs or is_property(theirs):
        return ""
    their, our = (without_first(signature(member)) for member in (theirs, ours))
    return next(_parameter_troubles(their, our), "")


def _parameter_troubles(their: ast.arguments, our: ast.arguments) -> Iterator[str]:
    their_names, our_names = ([arg.arg for arg in side.args] for side in (their, our))
    if our.vararg is None:
        for position, name in enumerate(their_names):
            ours = our_names[position] if position < len(our_names) else "nothing"
            if ours != name:
                yield f"parameter {position + 1} is {name}, ours is {ours}"
    our_required = our_names[: len(our_names) - len(our.defaults)]
    if extra := our_required[len(their_names) :]:
        yield f"passes no {', '.join(extra)} any more"
    our_keywords = {*our_names, *(arg.arg for arg in our.kwonlyargs)}
    if our.kwarg is None:
        yield from (
            f"passes {arg.arg}, which we do not take"
            for arg in their.kwonlyargs
            if arg.arg not in our_keywords
        )
        if their.kwarg is not None:
            yield f"passes **{their.kwarg.arg}, which we do not take"
