"""Engine x version x level: what fits, as JSON, and as Markdown and HTML made from it.

The contract is checked anew for every version named in `contract/engines.py`; what the levels that
need an installed engine found is kept from the runs that found it (`note_run`).
"""

import datetime as dt
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from compat_tests.contract.check import FITS, Verdict, check
from compat_tests.contract.drift import changes
from compat_tests.contract.engines import ENGINES, ROOT, Engine
from compat_tests.contract.fit import Fit
from compat_tests.contract.library import Library
from compat_tests.contract.needs import needs_of
from compat_tests.contract.records import order
from compat_tests.contract.sources import CannotCheckError, find_sources
from flexkv_connectors.versions import SUPPORTED

Row = dict[str, Any]

FOLDER = Path(__file__).parent
LEVELS = ("contract", "installed", "layout", "live")
LOUD = ("broken", "failed")
UNCHECKED = "could not check"
HEAD = ("engine", "version", "supported", *LEVELS, "changes since", "of these used by us")


def read() -> dict[str, Any]:
    """Return what was written last, or an empty matrix."""
    path = FOLDER / "matrix.json"
    return json.loads(path.read_text()) if path.is_file() else {"runs": {}, "rows": []}


def note_run(engine: str, version: str, level: str, result: str) -> None:
    """Keep the result of a run with an installed engine."""
    matrix = read()
    matrix["runs"].setdefault(f"{engine} {version}", {})[level] = result
    write(matrix)


def build(engines: Iterable[Engine], ours: Path = ROOT) -> dict[str, Any]:
    """Check every version of `engines`; rows of other engines stay."""
    matrix, chosen = read(), {engine.name for engine in engines}
    matrix["rows"] = [
        row
        for engine in ENGINES.values()
        for row in (
            _rows(engine, ours)
            if engine.name in chosen
            else [row for row in matrix["rows"] if row["engine"] == engine.name]
        )
    ]
    matrix["date"] = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d")
    matrix["commit"] = _commit(ours)
    return matrix


def _rows(engine: Engine, ours: Path) -> list[Row]:
    rows: list[Row] = []
    for version in sorted(engine.versions, key=order):
        base = next((row["version"] for row in reversed(rows) if row["contract"] == "fits"), "")
        base = base or (rows[-1]["version"] if rows and rows[-1]["members"] else "")
        row = {
            "engine": engine.name,
            "version": version,
            "supported": is_supported(engine, version),
        }
        try:
            verdict = check(engine, version, ours=ours)
        except CannotCheckError as error:
            rows.append({**row, **_unknown(str(error))})
            continue
        rows.append({**row, **_known(verdict), **_drift(engine, base, version, ours)})
    return rows


def _unknown(reason: str) -> Row:
    return {
        "contract": UNCHECKED,
        "members": 0,
        "findings": [reason],
        "since": "",
        "changes": 0,
        "used": [],
    }


def _known(verdict: Verdict) -> Row:
    findings = [
        f"{'broken' if one.is_broken else 'note'}: {one.place} {one.text}"
        for one in verdict.findings
    ]
    state = "fits" if verdict.status == FITS else "broken"
    return {"contract": state, "members": verdict.num_members, "findings": findings}


def _drift(engine: Engine, base: str, version: str, ours: Path) -> Row:
    """Return what changed since `base`, the last version that fits (or, without one, the last)."""
    if not base:
        return {"since": "", "changes": 0, "used": []}
    before, after = (Library(find_sources(engine, name)[1], ours) for name in (base, version))
    uses = Fit(engine, needs_of(engine, ours), after).uses
    moved = changes(engine, before, after, uses)
    used = [f"{one.kind} {one.path} ({one.place})" for one in moved if one.place]
    return {"since": base, "changes": len(moved), "used": used}


def is_supported(engine: Engine, version: str) -> bool:
    """Whether our connector starts on `version` at all."""
    known = SUPPORTED.get(engine.name)
    if known is None:
        return False
    return known.first <= order(version)[0][: len(known.first)] < known.end


def trouble(matrix: Mapping[str, Any]) -> list[str]:
    """Name the supported versions that something does not fit, or that are not to be had."""
    return [
        f"{row['engine']} {row['version']}: {level} {state}"
        for row in matrix["rows"]
        if row["supported"]
        for level, state in zip(LEVELS, _states(row, matrix["runs"]), strict=True)
        if state.startswith(LOUD) or (state == UNCHECKED and ENGINES[row["engine"]].has_wheels)
    ]


def _states(row: Row, runs: Mapping[str, Mapping[str, str]]) -> list[str]:
    run = runs.get(f"{row['engine']} {row['version']}", {})
    return [row["contract"], *(run.get(level, "-") for level in LEVELS[1:])]


def write(matrix: Mapping[str, Any]) -> None:
    """Write `matrix.json`, and the two forms for people."""
    (FOLDER / "matrix.json").write_text(json.dumps(matrix, indent=1) + "\n")
    (FOLDER / "MATRIX.md").write_text(to_markdown(matrix))
    (FOLDER / "matrix.html").write_text(to_html(matrix))


def _cells(row: Row, runs: Mapping[str, Mapping[str, str]]) -> list[str]:
    states = [_mark(state) for state in _states(row, runs)]
    supported = "yes" if row["supported"] else "no"
    since = f"{row['changes']} since {row['since']}" if row["since"] else "-"
    used = str(len(row["used"])) if row["since"] else "-"
    return [row["engine"], row["version"], supported, *states, since, used]


def _mark(state: str) -> str:
    """Write what must not be overlooked in capitals."""
    word, space, rest = state.partition(" ")
    return f"{word.upper() if word in LOUD else word}{space}{rest}"


def _details(row: Row) -> list[str]:
    return [*row["findings"], *(f"since {row['since']}: {line}" for line in row["used"])]


def to_markdown(matrix: Mapping[str, Any]) -> str:
    """Return the matrix as a page of Markdown."""
    lines = [
        "# Compatibility",
        "",
        f"As of {matrix['date']}, connectors at {matrix['commit']}. Made by `make compat`.",
        "",
        *EXPLANATION,
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{' --- |' * len(HEAD)}",
        *(f"| {' | '.join(_cells(row, matrix['runs']))} |" for row in matrix["rows"]),
    ]
    for row in matrix["rows"]:
        if details := _details(row):
            lines += ["", f"## {row['engine']} {row['version']}", ""]
            lines += [f"- {line}" for line in details]
    return "\n".join(lines) + "\n"


EXPLANATION = (
    "*contract*: the engine's sources, read without installing it. *installed*: a scripted",
    "exchange with the installed engine's own scheduler. *layout*: our geometry against the",
    "engine's own views. *live*: end to end on the running engine. `-`: not run; where",
    "files are counted, the others were not. *supported*: our connector starts on it; on others it",
    "refuses, in one line.",
)
STYLE = """body{font:15px system-ui;margin:2em auto;max-width:70em;padding:0 1em}
table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left}
.fits,.passed{background:#dff3df}.BROKEN,.FAILED{background:#f8d7d7}summary{cursor:pointer}"""


def to_html(matrix: Mapping[str, Any]) -> str:
    """Return the matrix as one page that needs nothing else."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    rows = "".join(
        f"<tr>{_html_cells(_cells(row, matrix['runs']))}</tr>\n" for row in matrix["rows"]
    )
    details = "".join(_html_details(row) for row in matrix["rows"] if _details(row))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Compatibility</title>'
        f"<style>{STYLE}</style><h1>Compatibility</h1>"
        f"<p>As of {matrix['date']}, connectors at {matrix['commit']}.</p>"
        f"<table><tr>{head}</tr>\n{rows}</table>\n{details}</html>\n"
    )


def _html_cells(cells: Sequence[str]) -> str:
    return "".join(
        f'<td class="{escape(cell.split(" ")[0])}">{escape(cell)}</td>' for cell in cells
    )


def _html_details(row: Row) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in _details(row))
    name = escape(f"{row['engine']} {row['version']}")
    return f"<details><summary>{name}</summary><ul>{items}</ul></details>\n"


def _commit(root: Path) -> str:
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "an unknown commit"
