"""One version of one engine: does the connector fit, and what has changed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from compat_tests.contract import isolation, weights
from compat_tests.contract.drift import Change, changes
from compat_tests.contract.engines import ROOT, Engine
from compat_tests.contract.fit import Finding, Fit
from compat_tests.contract.gates import unknown_gates
from compat_tests.contract.library import Library
from compat_tests.contract.needs import Needs, needs_of
from compat_tests.contract.records import load, older_than, write_record
from compat_tests.contract.sources import CannotCheckError, find_sources

FITS, BROKEN, COULD_NOT_CHECK = 0, 1, 2

PROBES: Mapping[str, Mapping[str, Callable[[Path], list[str]]]] = {
    "sglang": {
        "flexkv_connectors/sglang/storage.py": isolation.troubles,
        "flexkv_connectors/sglang/weight_updates.py": weights.troubles,
    }
}
"""What is asked of an engine's sources besides names: by our file that relies on the answer."""


class Verdict(NamedTuple):
    """What the contract says of one version."""

    engine: str
    version: str
    findings: list[Finding]
    num_members: int
    """Members of the engine that we depend on."""

    since: str
    """The recorded version that `changes` are counted from; empty if there is none."""

    changes: list[Change]

    @property
    def status(self) -> int:
        """Return the exit status."""
        return BROKEN if any(finding.is_broken for finding in self.findings) else FITS


def check(engine: Engine, version: str, *, ours: Path = ROOT, record: bool = False) -> Verdict:
    """Hold a connector against an engine's sources.

    Args:
        engine: Which one.
        version: See `find_sources`.
        ours: The checkout of this project whose connector is checked.
        record: Whether the version becomes a part of the history.

    Raises:
        CannotCheckError: There is nothing to check, and why.
    """
    exact, folder = find_sources(engine, version)
    needs = needs_of(engine, ours)
    library = Library(folder, ours)
    verdict = judge(engine, exact, library, needs)
    probed = [
        Finding(is_broken=True, text=text, place=place)
        for place, troubles in PROBES.get(engine.name, {}).items()
        for text in troubles(folder)
    ]
    verdict = verdict._replace(findings=[*probed, *verdict.findings])
    if record:
        write_record(engine, exact, library, needs)
    return verdict._replace(findings=unknown_gates(engine, folder) + verdict.findings)


def judge(engine: Engine, version: str, library: Library, needs: Needs) -> Verdict:
    """Hold `needs` against modules that are at hand, with the recorded versions as history."""
    if not needs.classes:
        msg = f"there is no connector in {engine.ours}"
        raise CannotCheckError(msg)
    known = older_than(engine, version)
    older = [load(engine, name) for name in known]
    fit = Fit(engine, needs, library, older)
    moved = changes(engine, older[-1], library, fit.uses) if older else []
    since = known[-1] if known else ""
    return Verdict(engine.name, version, fit.findings, len(fit.uses), since, moved)


def describe(verdict: Verdict, *, every_change: bool) -> list[str]:
    """Return a verdict as lines for a person."""
    broken = [finding for finding in verdict.findings if finding.is_broken]
    state = f"BROKEN in {len(broken)} places" if broken else "fits"
    lines = [f"{verdict.engine} {verdict.version}: {state} ({verdict.num_members} members used)"]
    lines += [
        f"  {'broken' if finding.is_broken else 'note':8} {finding.place}  {finding.text}"
        for finding in verdict.findings
    ]
    if verdict.since:
        ignored = sum(not change.place for change in verdict.changes)
        lines.append(
            f"  since {verdict.since}: {len(verdict.changes)} changes, {ignored} ignored by us"
        )
    lines += [_line(change) for change in verdict.changes if change.place or every_change]
    return lines


def _line(change: Change) -> str:
    what = f"{change.before} -> {change.after}" if change.kind == "changed" else ""
    used = change.place or "ignored by us"
    return f"  {change.kind:8} {change.path}  [{used}]  {what}".rstrip()
