"""What changed between two versions of an engine, and which of it we depend on."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from compat_tests.contract.engines import Engine
from compat_tests.contract.interface import Module, without_body
from compat_tests.contract.library import Library


class Change(NamedTuple):
    """One member that differs."""

    kind: str
    """`added`, `removed` or `changed`."""

    path: str
    before: str
    after: str
    place: str
    """Ours that depends on it; empty: ignored by us."""


def changes(
    engine: Engine, before: Library, after: Library, uses: Mapping[str, set[str]]
) -> list[Change]:
    """Return the differences in what is compared of `engine`, sorted by path.

    Args:
        engine: Says which modules.
        before: The older version.
        after: The newer version.
        uses: Members to our places, from `Fit`.
    """
    old, new = (dict(_members(engine, library)) for library in (before, after))
    paths = sorted(old.keys() | new.keys())
    return [
        Change(_kind(path, old, new), path, old.get(path, ""), new.get(path, ""), place)
        for path in paths
        if old.get(path) != new.get(path)
        for place in [_place(path, old.get(path, ""), new.get(path, ""), uses)]
    ]


def _kind(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if path not in old:
        return "added"
    return "changed" if path in new else "removed"


def _place(path: str, before: str, after: str, uses: Mapping[str, set[str]]) -> str:
    """Return the first place that uses a member or, for an order of calls, a hook in it."""
    places = set(uses.get(path, ()))
    if path.endswith(" order"):
        moved = {call.removeprefix("if ").partition("(")[0] for call in _moved(before, after)}
        for used, where in uses.items():
            if used.rpartition(".")[2] in moved:
                places |= where
    return min(places, default="")


def _moved(before: str, after: str) -> set[str]:
    """Return the calls that only one side has; all, if they differ in nothing but order."""
    old, new = set(before.split(", ")), set(after.split(", "))
    return old ^ new or new


def _members(engine: Engine, library: Library) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of everything that is compared."""
    for name in engine.present:
        if library.has_module(name):
            yield name, "module"
    for name in engine.watched:
        if (module := library.module(name)) is not None:
            yield from _members_of(name, module)
    for name in engine.callers:
        for method, calls in (library.module(name) or {"calls": {}})["calls"].items():
            yield f"{name}.{method} order", ", ".join(calls)
    for path in engine.behaviour:
        if text := behaviour(library, path):
            yield f"{path} body", text


def _members_of(name: str, module: Module) -> Iterator[tuple[str, str]]:
    yield name, "module"
    for cls, found in module["classes"].items():
        yield f"{name}.{cls}", f"class ({', '.join(found['bases'])})"
        for member, text in found["members"].items():
            if not text.startswith("attribute"):
                yield f"{name}.{cls}.{member}", without_body(text)
    for function, text in module["functions"].items():
        yield f"{name}.{function}", without_body(text)
    for value, text in module["values"].items():
        yield f"{name}.{value}", text


def behaviour(library: Library, path: str) -> str:
    """Return the digest of what the function at `path` does; empty if there is none."""
    parent, _, name = path.rpartition(".")
    module = library.module(parent)
    if module is not None:
        text = module["functions"].get(name, "")
    else:
        parent, _, cls = parent.rpartition(".")
        found = (library.module(parent) or {"classes": {}})["classes"].get(cls, {"members": {}})
        text = found["members"].get(name, "")
    return text.partition("  # body ")[2]
