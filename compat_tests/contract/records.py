"""Interfaces of versions that were read once, as JSON beside this file.

A record holds what `drift` compares and what `fit` looked at, so it gives the same answers as the
sources it was made from. Records are the history: they tell a hook that has gone from one that is
not there yet, and they are what the tests of this tool run on.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from compat_tests.contract.engines import ROOT, Engine
from compat_tests.contract.interface import Module, without_body
from compat_tests.contract.library import Library
from compat_tests.contract.needs import Needs

FOLDER = Path(__file__).with_name("recorded")


def order(version: str) -> tuple[tuple[int, ...], bool]:
    """Return what versions are sorted by; a pre-release comes before its release."""
    release = re.match(r"[\d.]*", version)
    numbers = tuple(int(part) for part in (release[0] if release else "").split(".") if part)
    return numbers, not re.search(r"\d(a|b|rc)\d", version)


def recorded(engine: Engine) -> list[str]:
    """Return the versions that are recorded, oldest first."""
    names = (path.stem.removeprefix(f"{engine.name}-") for path in FOLDER.glob("*.json"))
    known = [name for name in names if (FOLDER / f"{engine.name}-{name}.json").is_file()]
    return sorted(known, key=order)


def load(engine: Engine, version: str) -> Library:
    """Return a recorded version, with our own sources beside it."""
    return Library.from_record(FOLDER / f"{engine.name}-{version}.json", ROOT)


def older_than(engine: Engine, version: str) -> list[str]:
    """Return the recorded versions before `version`; all of them if it is no version at all."""
    known = recorded(engine)
    if not version[:1].isdigit():
        return known
    return [name for name in known if order(name) < order(version)]


def write_record(engine: Engine, version: str, library: Library, needs: Needs) -> Path:
    """Record what has been asked of `library`, after a `Fit` has asked it."""
    wanted = {step.name for _, chain in needs.chains for step in chain.steps if step.name}
    wanted |= {keyword for _, chain in needs.chains for step in chain.steps for keyword in step[3]}
    modules = {}
    for name in sorted({*library.asked, *engine.watched, *engine.callers, *_homes(engine)}):
        if name.partition(".")[0] == engine.package:
            modules[name] = _pruned(engine, name, library, wanted)
    modules |= {name: _empty() for name in engine.present if library.has_module(name)}
    path = FOLDER / f"{engine.name}-{version}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(modules, indent=0, separators=(",", ":")) + "\n")
    return path


def _homes(engine: Engine) -> Iterable[str]:
    """Return the modules of `behaviour`, whether a function or a method ends the path."""
    for path in engine.behaviour:
        parts = path.split(".")
        yield ".".join(parts[: -2 if parts[-2][0].isupper() else -1])


def _empty() -> Module:
    return {"classes": {}, "functions": {}, "imports": {}, "values": {}, "calls": {}}


def _pruned(engine: Engine, name: str, library: Library, wanted: set[str]) -> Module | None:
    """Return a module without what nobody looks at."""
    module = library.module(name)
    if module is None:
        return None
    asked, is_watched = library.asked.get(name, set()), name in engine.watched
    bodies = {path for path in engine.behaviour if path.startswith(f"{name}.")}
    kept = _empty()
    kept["imports"] = {k: v for k, v in module["imports"].items() if k in asked or k[0] == "*"}
    kept["calls"] = module["calls"] if name in engine.callers else {}
    kept["values"] = {k: v for k, v in module["values"].items() if is_watched or k in asked}
    kept["functions"] = {
        key: text if f"{name}.{key}" in bodies else without_body(text)
        for key, text in module["functions"].items()
        if is_watched or key in asked or f"{name}.{key}" in bodies
    }
    kept["classes"] = {
        cls: {
            "bases": found["bases"],
            "members": {
                key: text if f"{name}.{cls}.{key}" in bodies else without_body(text)
                for key, text in found["members"].items()
                if _is_kept(engine, name, f"{cls}.{key}", text, wanted)
            },
        }
        for cls, found in module["classes"].items()
        if is_watched or cls in asked or any(path.startswith(f"{name}.{cls}.") for path in bodies)
    }
    return kept


def _is_kept(engine: Engine, module: str, member: str, text: str, wanted: set[str]) -> bool:
    name = member.partition(".")[2]
    return (
        (module in engine.watched and not text.startswith("attribute"))
        or name in wanted
        or name == "__init__"
        or text.startswith("abstract ")
        or f"{module}.{member}" in engine.behaviour
    )
