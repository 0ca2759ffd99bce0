"""An engine's Python sources: out of a wheel, or a checkout; nothing is installed."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from compat_tests.contract.engines import ROOT, Engine

CACHE = ROOT / ".work" / "engines"
PYTHONS = ("3.12", "3.11")
"""Wheels for one Python alone are taken for the first of these that has one."""

PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 17, 12, 5))


MAX_S = 1800
"""The longest that one download may take."""


class CannotCheckError(Exception):
    """Why there is nothing to compare, in one line. Not a verdict on the engine."""


def find_sources(engine: Engine, version: str) -> tuple[str, Path]:
    """Return the exact version and the folder that holds the engine's package.

    Args:
        engine: Which one.
        version: A release, `latest`, `pre` (pre-releases included), a wheel, or a checkout.

    Raises:
        CannotCheckError: No such version, no network, no wheel, or not a wheel.
    """
    path = Path(version)
    if path.suffix == ".whl":
        return path.name.split("-")[1], _unpack(path, CACHE / engine.name / path.stem, engine)
    if path.is_dir() or "/" in version:
        return version, _checkout(path, engine)
    if version in {"latest", "pre"}:
        version = _newest(engine, pre=version == "pre")
    folder = CACHE / engine.name / version
    return version, folder if folder.is_dir() else _download(engine, version, folder)


def _checkout(path: Path, engine: Engine) -> Path:
    for folder in (path, path / "python"):
        if (folder / engine.package).is_dir():
            return folder
    msg = f"{path} holds no folder {engine.package}/ and no python/{engine.package}/"
    raise CannotCheckError(msg)


def _newest(engine: Engine, *, pre: bool) -> str:
    official = engine.distributions[-1]
    output = _pip("index", "versions", official, *(["--pre"] if pre else []))
    found = re.search(r"^Available versions: ([^,\s]+)", output, re.MULTILINE)
    if found is None:
        msg = f"the package index names no version of {official}"
        raise CannotCheckError(msg)
    return found[1]


def _download(engine: Engine, version: str, folder: Path) -> Path:
    """Unpack the first wheel that any of the engine's distributions has of `version`."""
    reason = CannotCheckError("nothing was tried")
    for distribution in engine.distributions:
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as room:
                try:
                    _pip(
                        *(
                            "download",
                            "--quiet",
                            "--no-deps",
                            "--only-binary=:all:",
                            "--dest",
                            room,
                        ),
                        *("--python-version", python, f"{distribution}=={version}"),
                        *(part for name in PLATFORMS for part in ("--platform", name)),
                    )
                except CannotCheckError as error:
                    reason = error
                    continue
                [wheel] = Path(room).iterdir()
                return _unpack(wheel, folder, engine)
    raise reason


def _pip(*arguments: str) -> str:
    """Run pip and return what it says; a failure becomes one line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            [*command, *arguments], check=False, capture_output=True, text=True, timeout=MAX_S
        )
    except subprocess.TimeoutExpired as error:
        msg = f"the package index did not answer within {MAX_S} s"
        raise CannotCheckError(msg) from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CannotCheckError((errors or ["pip failed"])[-1].removeprefix("ERROR: "))
    return done.stdout


def _unpack(wheel: Path, folder: Path, engine: Engine) -> Path:
    """Unzip the package's Python files, all of them or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        try:
            with zipfile.ZipFile(wheel) as archive:
                wanted = [name for name in archive.namelist() if _is_wanted(name, engine)]
                archive.extractall(room, wanted)
        except (OSError, zipfile.BadZipFile) as error:
            msg = f"{wheel.name} cannot be read: {error}"
            raise CannotCheckError(msg) from error
        if not wanted:
            msg = f"{wheel.name} holds no Python of {engine.package}"
            raise CannotCheckError(msg)
        if not folder.exists():
            Path(room).rename(folder)
            Path(room).mkdir()  # what the context removes at its end
    return folder


def _is_wanted(name: str, engine: Engine) -> bool:
    return name.startswith(f"{engine.package}/") and name.endswith(".py")
